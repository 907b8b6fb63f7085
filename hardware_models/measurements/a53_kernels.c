/* Low-bit NEON micro-kernel prototypes of the Cortex-A53 profile, written for this project; the static cycle
 * counts in profiles/cortex-a53-rpi3-lowbit-neon.toml are those of this file:
 *   clang-19 --target=aarch64-linux-gnu -O3 -mcpu=cortex-a53 -S a53_kernels.c
 * then every basic block through llvm-mca-19 -mtriple=aarch64 -mcpu=cortex-a53 -iterations=200.
 *
 * The product kernels compute all channel tiles of one panel of pixels; C is int32, K is the padded row length.
 * w8a8: K % 8 == 0; w4a8: K % 16 == 0; w2a2: K % 64 == 0. Weights are narrow range (no -128, -8, -2).
 */
#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>
#define NU _Pragma("clang loop unroll(disable)")
static inline int32x4_t red(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d) {
  return vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
}
void w8a8(const int8_t *a, size_t as, const int8_t *b, int32_t *c, size_t K, size_t T, size_t cs) {
  NU for (size_t t = 0; t < T; t++, c += 16) {
    int32x4_t acc[4][4];
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < 4; j++)
        acc[i][j] = vdupq_n_s32(0);
    const int8_t *a0 = a, *a1 = a + as, *a2 = a + 2 * as, *a3 = a + 3 * as;
    NU for (size_t k = 0; k < K; k += 8) {
      int16x8_t va0 = vmovl_s8(vld1_s8(a0)), va1 = vmovl_s8(vld1_s8(a1)), va2 = vmovl_s8(vld1_s8(a2)),
                va3 = vmovl_s8(vld1_s8(a3));
      a0 += 8;
      a1 += 8;
      a2 += 8;
      a3 += 8;
#define L(i, x, h, l)                                                                                                  \
  acc[i][0] = vmlal_laneq_s16(acc[i][0], vget_low_s16(w0), x, l);                                                      \
  acc[i][1] = vmlal_high_laneq_s16(acc[i][1], w0, x, l);                                                               \
  acc[i][2] = vmlal_laneq_s16(acc[i][2], vget_low_s16(w1), x, l);                                                      \
  acc[i][3] = vmlal_high_laneq_s16(acc[i][3], w1, x, l);
#define S(l)                                                                                                           \
  {                                                                                                                    \
    int8x16_t q = vld1q_s8(b);                                                                                         \
    b += 16;                                                                                                           \
    int16x8_t w0 = vmovl_s8(vget_low_s8(q)), w1 = vmovl_high_s8(q);                                                    \
    L(0, va0, 0, l) L(1, va1, 0, l) L(2, va2, 0, l) L(3, va3, 0, l)                                                    \
  }
      S(0) S(1) S(2) S(3) S(4) S(5) S(6) S(7)
    }
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < 4; j++)
        vst1q_s32(c + i * cs + j * 4, acc[i][j]);
  }
}
#define FH(first)                                                                                                      \
  {                                                                                                                    \
    int8x16_t x0 = vld1q_s8(a0), x1 = vld1q_s8(a0 + 16), y0 = vld1q_s8(a1), y1 = vld1q_s8(a1 + 16);                    \
    a0 += 32;                                                                                                          \
    a1 += 32;                                                                                                          \
    for (int j = 0; j < 4; j++) {                                                                                      \
      int8x16_t q = vld1q_s8(b + 16 * j);                                                                              \
      int8x16_t l = vshrq_n_s8(vshlq_n_s8(q, 4), 4), h = vshrq_n_s8(q, 4);                                             \
      p[0][j] =                                                                                                        \
          first ? vmull_s8(vget_low_s8(l), vget_low_s8(x0)) : vmlal_s8(p[0][j], vget_low_s8(l), vget_low_s8(x0));      \
      p[0][j] = vmlal_high_s8(p[0][j], l, x0);                                                                         \
      p[0][j] = vmlal_s8(p[0][j], vget_low_s8(h), vget_low_s8(x1));                                                    \
      p[0][j] = vmlal_high_s8(p[0][j], h, x1);                                                                         \
      p[1][j] =                                                                                                        \
          first ? vmull_s8(vget_low_s8(l), vget_low_s8(y0)) : vmlal_s8(p[1][j], vget_low_s8(l), vget_low_s8(y0));      \
      p[1][j] = vmlal_high_s8(p[1][j], l, y0);                                                                         \
      p[1][j] = vmlal_s8(p[1][j], vget_low_s8(h), vget_low_s8(y1));                                                    \
      p[1][j] = vmlal_high_s8(p[1][j], h, y1);                                                                         \
    }                                                                                                                  \
    b += 64;                                                                                                           \
  }
void w4a8(const int8_t *a, size_t as, const int8_t *b, int32_t *c, size_t K, size_t T, size_t cs) {
  NU for (size_t t = 0; t < T; t++, c += 4) {
    int32x4_t acc[2][4];
    for (int i = 0; i < 2; i++)
      for (int j = 0; j < 4; j++)
        acc[i][j] = vdupq_n_s32(0);
    const int8_t *a0 = a, *a1 = a + as;
    size_t k = 0;
    NU for (; k + 64 <= K; k += 64) {
      int16x8_t p[2][4];
      FH(1) FH(0) for (int i = 0; i < 2; i++) for (int j = 0; j < 4; j++) acc[i][j] = vpadalq_s16(acc[i][j], p[i][j]);
    }
    if (K & 32) {
      int16x8_t p[2][4];
      FH(1) for (int i = 0; i < 2; i++) for (int j = 0; j < 4; j++) acc[i][j] = vpadalq_s16(acc[i][j], p[i][j]);
    }
    if (K & 16) {
      int8x16_t x = vld1q_s8(a0), y = vld1q_s8(a1);
      for (int j = 0; j < 4; j += 2) {
        int8x16_t q = vld1q_s8(b + 8 * j);
        int8x16_t l = vshrq_n_s8(vshlq_n_s8(q, 4), 4), h = vshrq_n_s8(q, 4);
        int16x8_t p;
        p = vmull_s8(vget_low_s8(l), vget_low_s8(x));
        p = vmlal_high_s8(p, l, x);
        acc[0][j] = vpadalq_s16(acc[0][j], p);
        p = vmull_s8(vget_low_s8(l), vget_low_s8(y));
        p = vmlal_high_s8(p, l, y);
        acc[1][j] = vpadalq_s16(acc[1][j], p);
        p = vmull_s8(vget_low_s8(h), vget_low_s8(x));
        p = vmlal_high_s8(p, h, x);
        acc[0][j + 1] = vpadalq_s16(acc[0][j + 1], p);
        p = vmull_s8(vget_low_s8(h), vget_low_s8(y));
        p = vmlal_high_s8(p, h, y);
        acc[1][j + 1] = vpadalq_s16(acc[1][j + 1], p);
      }
      b += 32;
    }
    for (int i = 0; i < 2; i++)
      vst1q_s32(c + i * cs, red(acc[i][0], acc[i][1], acc[i][2], acc[i][3]));
  }
}
void w2a2(const uint8_t *a, size_t as, const uint8_t *b, int32_t *c, size_t K, size_t T, size_t cs) {
  NU for (size_t t = 0; t < T; t++, c += 4) {
    const uint8_t *ap = a;
    int32x4_t acc[4][4];
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < 4; j++)
        acc[i][j] = vdupq_n_s32(0);
    NU for (size_t k = 0; k < K;) {
      size_t e = k + 640 < K ? k + 640 : K;
      int8x16_t s[4][4];
      for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
          s[i][j] = vdupq_n_s8(0);
      NU for (; k < e; k += 64) {
        uint8x16_t qa[4];
        int8x16_t qb[4];
        for (int i = 0; i < 4; i++)
          qa[i] = vld1q_u8(ap + i * as);
        ap += 16;
        for (int j = 0; j < 4; j++)
          qb[j] = vld1q_s8((const int8_t *)b + 16 * j);
        b += 64;
#pragma clang loop unroll(full)
        for (int z = 0; z < 4; z++) {
          int8x16_t xa[4], xb[4];
          for (int i = 0; i < 4; i++) {
            xa[i] = vreinterpretq_s8_u8(vandq_u8(qa[i], vdupq_n_u8(3)));
            if (z < 3)
              qa[i] = vshrq_n_u8(qa[i], 2);
          }
          for (int j = 0; j < 4; j++) {
            xb[j] = vshrq_n_s8(qb[j], 6);
            if (z < 3)
              qb[j] = vshlq_n_s8(qb[j], 2);
          }
          for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++)
              s[i][j] = vmlaq_s8(s[i][j], xa[i], xb[j]);
        }
      }
      for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
          acc[i][j] = vpadalq_s16(acc[i][j], vpaddlq_s8(s[i][j]));
    }
    for (int i = 0; i < 4; i++)
      vst1q_s32(c + i * cs, red(acc[i][0], acc[i][1], acc[i][2], acc[i][3]));
  }
}
static inline int32x4_t rq(int32x4_t a, int32x4_t bias, int32x4_t pre, int32x4_t m, int32x4_t post) {
  a = vaddq_s32(a, bias);
  a = vqshlq_s32(a, pre);
  a = vqdmulhq_s32(a, m);
  return vrshlq_s32(a, post);
}
// requantize 16 outputs of one pixel (16 channels), store bytes
void requantize(const int32_t *c, const int32_t *bias, const int32_t *pre, const int32_t *m, const int32_t *post,
                uint8_t *restrict o, int16_t zp, uint8_t lo, uint8_t hi, size_t n) {
  _Pragma("clang loop unroll_count(4)") for (size_t i = 0; i < n; i++) {
    int32x4_t r[4];
    for (int j = 0; j < 4; j++)
      r[j] = rq(vld1q_s32(c + 4 * j), vld1q_s32(bias + 4 * j), vld1q_s32(pre + 4 * j), vld1q_s32(m + 4 * j),
                vld1q_s32(post + 4 * j));
    c += 16;
    int16x8_t h0 = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(r[0]), r[1]), vdupq_n_s16(zp)),
              h1 = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(r[2]), r[3]), vdupq_n_s16(zp));
    uint8x16_t q = vqmovun_high_s16(vqmovun_s16(h0), h1);
    q = vminq_u8(vmaxq_u8(q, vdupq_n_u8(lo)), vdupq_n_u8(hi));
    vst1q_u8(o, q);
    o += 16;
  }
}
void unpack4(const uint8_t *a, uint8_t *restrict o, size_t n) {
  _Pragma("clang loop unroll_count(4)") for (size_t i = 0; i < n; i++) {
    uint8x16_t q = vld1q_u8(a);
    a += 16;
    uint8x16x2_t v;
    v.val[0] = vandq_u8(q, vdupq_n_u8(15));
    v.val[1] = vshrq_n_u8(q, 4);
    vst2q_u8(o, v);
    o += 32;
  }
}
void unpack2(const uint8_t *a, uint8_t *restrict o, size_t n) {
  _Pragma("clang loop unroll_count(4)") for (size_t i = 0; i < n; i++) {
    uint8x16_t q = vld1q_u8(a);
    a += 16;
    uint8x16x4_t v;
    uint8x16_t m = vdupq_n_u8(3);
    v.val[0] = vandq_u8(q, m);
    v.val[1] = vandq_u8(vshrq_n_u8(q, 2), m);
    v.val[2] = vandq_u8(vshrq_n_u8(q, 4), m);
    v.val[3] = vshrq_n_u8(q, 6);
    vst4q_u8(o, v);
    o += 64;
  }
}
void pack4(const uint8_t *a, uint8_t *restrict o, size_t n) {
  _Pragma("clang loop unroll_count(4)") for (size_t i = 0; i < n; i++) {
    uint8x16x2_t v = vld2q_u8(a);
    a += 32;
    vst1q_u8(o, vsliq_n_u8(v.val[0], v.val[1], 4));
    o += 16;
  }
}
void pack2(const uint8_t *a, uint8_t *restrict o, size_t n) {
  _Pragma("clang loop unroll_count(4)") for (size_t i = 0; i < n; i++) {
    uint8x16x4_t v = vld4q_u8(a);
    a += 64;
    uint8x16_t x = vsliq_n_u8(v.val[0], v.val[1], 2), y = vsliq_n_u8(v.val[2], v.val[3], 2);
    vst1q_u8(o, vsliq_n_u8(x, y, 4));
    o += 16;
  }
}
void copy(const uint8_t *a, uint8_t *restrict o, size_t n) {
  _Pragma("clang loop unroll_count(4)") for (size_t i = 0; i < n; i++) {
    uint8x16_t x = vld1q_u8(a), y = vld1q_u8(a + 16), z = vld1q_u8(a + 32), w = vld1q_u8(a + 48);
    a += 64;
    vst1q_u8(o, x);
    vst1q_u8(o + 16, y);
    vst1q_u8(o + 32, z);
    vst1q_u8(o + 48, w);
    o += 64;
  }
}
// depthwise: 16 channels, 9 taps, one output pixel (weights from memory)
void depthwise(const int8_t *x, size_t s, const int8_t *w, int32_t *restrict o, size_t n) {
  _Pragma("clang loop unroll_count(4)") for (size_t i = 0; i < n; i++) {
    int32x4_t a[4];
    for (int j = 0; j < 4; j++)
      a[j] = vdupq_n_s32(0);
#pragma clang loop unroll(full)
    for (int t = 0; t < 9; t++) {
      int8x16_t v = vld1q_s8(x + t * s), q = vld1q_s8(w + 16 * t);
      int16x8_t l = vmull_s8(vget_low_s8(v), vget_low_s8(q)), h = vmull_high_s8(v, q);
      a[0] = vaddw_s16(a[0], vget_low_s16(l));
      a[1] = vaddw_high_s16(a[1], l);
      a[2] = vaddw_s16(a[2], vget_low_s16(h));
      a[3] = vaddw_high_s16(a[3], h);
    }
    x += 16;
    for (int j = 0; j < 4; j++)
      vst1q_s32(o + 4 * j, a[j]);
    o += 16;
  }
}
// add of two uint8 tensors, 8 codes
void add(const uint8_t *a, const uint8_t *b, uint8_t *restrict o, int32_t ma, int32_t mb, int32_t bias, int sh,
         uint8_t lo, uint8_t hi, int16_t zp, size_t n) {
  int32x4_t s = vdupq_n_s32(-sh);
  _Pragma("clang loop unroll_count(4)") for (size_t i = 0; i < n; i++) {
    uint16x8_t x = vmovl_u8(vld1_u8(a)), y = vmovl_u8(vld1_u8(b));
    a += 8;
    b += 8;
    int32x4_t r0 = vmlaq_n_s32(vdupq_n_s32(bias), vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(x))), ma),
              r1 = vmlaq_n_s32(vdupq_n_s32(bias), vreinterpretq_s32_u32(vmovl_high_u16(x)), ma);
    r0 = vmlaq_n_s32(r0, vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(y))), mb);
    r1 = vmlaq_n_s32(r1, vreinterpretq_s32_u32(vmovl_high_u16(y)), mb);
    r0 = vrshlq_s32(r0, s);
    r1 = vrshlq_s32(r1, s);
    int16x8_t h = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(r0), r1), vdupq_n_s16(zp));
    uint8x8_t q = vqmovun_s16(h);
    q = vmin_u8(vmax_u8(q, vdup_n_u8(lo)), vdup_n_u8(hi));
    vst1_u8(o, q);
    o += 8;
  }
}
