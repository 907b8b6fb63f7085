/* Bit-exactness of a53_kernels.c against plain C: link statically for aarch64 and run under qemu-aarch64.
 * Rows of every padded length, random codes and the extremes that the narrow accumulators must hold. */
#include "a53_kernels.c"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int8_t A[4 * 2048], Bm[64 * 2048], W[64][2048];
static uint8_t A2[4 * 2048];
static int32_t C[4 * 64];
static int X[4][2048];
int main() {
  int bad = 0;
  srand(1);
  for (int K = 64; K <= 1280; K += 64)
    for (int ext = 0; ext < 2; ext++) { // w2a2
      for (int i = 0; i < 4; i++)
        for (int k = 0; k < K; k++)
          X[i][k] = ext ? 3 : rand() % 4;
      for (int j = 0; j < 8; j++)
        for (int k = 0; k < K; k++)
          W[j][k] = ext ? 1 : rand() % 3 - 1;
      // the kernel reads rows at a+i*as, 16 bytes per 64 codes, plane z = bits 2z; weights from the top plane down
      memset(A2, 0, sizeof A2);
      memset(Bm, 0, sizeof Bm);
      for (int i = 0; i < 4; i++)
        for (int k = 0; k < K; k++)
          A2[i * (K / 4) + (k / 64) * 16 + k % 16] |= X[i][k] << (2 * ((k % 64) / 16));
      for (int t = 0; t < 2; t++)
        for (int k = 0; k < K; k++)
          for (int j = 0; j < 4; j++) {
            int z = (k % 64) / 16;
            Bm[t * K + (k / 64) * 64 + j * 16 + k % 16] |= (W[t * 4 + j][k] & 3) << (2 * (3 - z));
          }
      w2a2(A2, K / 4, (uint8_t *)Bm, C, K, 2, 8);
      for (int i = 0; i < 4; i++)
        for (int j = 0; j < 8; j++) {
          int s = 0;
          for (int k = 0; k < K; k++)
            s += X[i][k] * W[j][k];
          bad += s != C[i * 8 + j];
        }
    }
  printf("w2a2 bad %d\n", bad);
  bad = 0;
  for (int K = 16; K <= 640; K += 16)
    for (int ext = 0; ext < 2; ext++) {
      for (int i = 0; i < 2; i++)
        for (int k = 0; k < K; k++) {
          X[i][k] = ext ? -128 : rand() % 256 - 128;
          A[i * K + k] = X[i][k];
        }
      for (int j = 0; j < 8; j++)
        for (int k = 0; k < K; k++)
          W[j][k] = ext ? -7 : rand() % 15 - 7;
      memset(Bm, 0, sizeof Bm);
      int8_t *b = Bm;
      for (int t = 0; t < 2; t++) {
        int k = 0;
        for (; k + 32 <= K; k += 32) {
          for (int j = 0; j < 4; j++)
            for (int n = 0; n < 16; n++)
              b[16 * j + n] = (W[t * 4 + j][k + n] & 15) | (W[t * 4 + j][k + 16 + n] << 4);
          b += 64;
        }
        if (k < K) {
          for (int j = 0; j < 4; j += 2)
            for (int n = 0; n < 16; n++)
              b[8 * j + n] = (W[t * 4 + j][k + n] & 15) | (W[t * 4 + j + 1][k + n] << 4);
          b += 32;
        }
      }
      w4a8(A, K, Bm, C, K, 2, 8);
      for (int i = 0; i < 2; i++)
        for (int j = 0; j < 8; j++) {
          int s = 0;
          for (int k = 0; k < K; k++)
            s += X[i][k] * W[j][k];
          bad += s != C[i * 8 + j];
        }
    }
  printf("w4a8 bad %d\n", bad);
  bad = 0;
  for (int K = 8; K <= 640; K += 8) {
    for (int i = 0; i < 4; i++)
      for (int k = 0; k < K; k++) {
        X[i][k] = rand() % 256 - 128;
        A[i * K + k] = X[i][k];
      }
    for (int j = 0; j < 32; j++)
      for (int k = 0; k < K; k++)
        W[j][k] = rand() % 255 - 127;
    for (int t = 0; t < 2; t++)
      for (int k = 0; k < K; k++)
        for (int j = 0; j < 16; j++)
          Bm[t * 16 * K + k * 16 + j] = W[t * 16 + j][k];
    static int32_t D[4 * 32];
    w8a8(A, K, Bm, D, K, 2, 32);
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < 32; j++) {
        int s = 0;
        for (int k = 0; k < K; k++)
          s += X[i][k] * W[j][k];
        bad += s != D[i * 32 + j];
      }
  }
  printf("w8a8 bad %d\n", bad);
  return 0;
}
