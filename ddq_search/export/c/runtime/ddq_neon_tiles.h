/* Register tiles: P output positions x 4 channels, K in steps of 16, from columns and unpacked weights (layouts in
 * ddq_neon_columns.h). Products meet in lanes that are added up at the end of a block of steps.
 *
 *   DDQ_WIDE   two 8 x 8-bit products per int16 lane, added to int32 lanes at every step
 *   DDQ_HALF   products of narrow codes stay in int16 lanes for a block of steps
 *   DDQ_BYTE   products of two narrow codes stay in int8 lanes for a block of steps
 *   DDQ_DOT    the dot-product instruction, or DDQ_WIDE's arithmetic where the core has none
 */
#ifndef DDQ_NEON_TILES_H
#define DDQ_NEON_TILES_H

#include "ddq_neon_columns.h"

enum { DDQ_WIDE, DDQ_HALF, DDQ_BYTE, DDQ_DOT };

/* One step in int16 lanes; `first` starts the block. */
DDQ_INLINE void ddq_half_step(int P, int16x8_t acc[][4], const int8_t *x, const int8_t *w, int first) {
    int8x16_t b[4];
    DDQ_FENCE;
    DDQ_UNROLL for (int c = 0; c < 4; c++)
        b[c] = vld1q_s8(w + 16 * c);
    DDQ_UNROLL for (int p = 0; p < P; p += 2) {
        const int8x16_t u = vld1q_s8(x + 16 * p), v = vld1q_s8(x + 16 * p + 16);
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            acc[p][c] = first ? vmull_s8(vget_low_s8(b[c]), vget_low_s8(u))
                              : vmlal_s8(acc[p][c], vget_low_s8(b[c]), vget_low_s8(u));
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            acc[p + 1][c] = first ? vmull_s8(vget_low_s8(b[c]), vget_low_s8(v))
                                  : vmlal_s8(acc[p + 1][c], vget_low_s8(b[c]), vget_low_s8(v));
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            acc[p][c] = vmlal_high_s8(acc[p][c], b[c], u);
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            acc[p + 1][c] = vmlal_high_s8(acc[p + 1][c], b[c], v);
    }
}

DDQ_INLINE void ddq_byte_step(int P, int8x16_t acc[][4], const int8_t *x, const int8_t *w, int first) {
    int8x16_t b[4];
    DDQ_FENCE;
    DDQ_UNROLL for (int c = 0; c < 4; c++)
        b[c] = vld1q_s8(w + 16 * c);
    DDQ_UNROLL for (int p = 0; p < P; p++) {
        const int8x16_t u = vld1q_s8(x + 16 * p);
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            acc[p][c] = first ? vmulq_s8(b[c], u) : vmlaq_s8(acc[p][c], b[c], u);
    }
}

DDQ_INLINE void ddq_wide_step(int P, int32x4_t acc[][4], const int8_t *x, const int8_t *w) {
    int8x16_t u[4];
    DDQ_FENCE;
    DDQ_UNROLL for (int p = 0; p < P; p++)
        u[p] = vld1q_s8(x + 16 * p);
    DDQ_UNROLL for (int c = 0; c < 4; c += 2) {
        const int8x16_t a = vld1q_s8(w + 16 * c), b = vld1q_s8(w + 16 * c + 16);
        int16x8_t s[4], t[4];
        DDQ_UNROLL for (int p = 0; p < P; p++)
            s[p] = vmull_s8(vget_low_s8(a), vget_low_s8(u[p]));
        DDQ_UNROLL for (int p = 0; p < P; p++)
            t[p] = vmull_s8(vget_low_s8(b), vget_low_s8(u[p]));
        DDQ_UNROLL for (int p = 0; p < P; p++)
            s[p] = vmlal_high_s8(s[p], a, u[p]);
        DDQ_UNROLL for (int p = 0; p < P; p++)
            t[p] = vmlal_high_s8(t[p], b, u[p]);
        DDQ_UNROLL for (int p = 0; p < P; p++)
            acc[p][c] = vpadalq_s16(acc[p][c], s[p]);
        DDQ_UNROLL for (int p = 0; p < P; p++)
            acc[p][c + 1] = vpadalq_s16(acc[p][c + 1], t[p]);
        if (c == 0)
            DDQ_FENCE;
    }
}

DDQ_INLINE void ddq_dot_step(int P, int32x4_t acc[][4], const int8_t *x, const int8_t *w) {
    int8x16_t b[4];
    DDQ_FENCE;
    DDQ_UNROLL for (int c = 0; c < 4; c++)
        b[c] = vld1q_s8(w + 16 * c);
    DDQ_UNROLL for (int p = 0; p < P; p++) {
        const int8x16_t u = vld1q_s8(x + 16 * p);
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            acc[p][c] = ddq_dot(acc[p][c], b[c], u);
    }
}

/* Lanes of four channels, added up: one int32 per channel. */
DDQ_INLINE int32x4_t ddq_reduce_words(const int32x4_t *acc) {
    return vpaddq_s32(vpaddq_s32(acc[0], acc[1]), vpaddq_s32(acc[2], acc[3]));
}

DDQ_INLINE int32x4_t ddq_reduce_halves(const int16x8_t *acc) {
    return vpaddq_s32(vpaddq_s32(vpaddlq_s16(acc[0]), vpaddlq_s16(acc[1])),
                      vpaddq_s32(vpaddlq_s16(acc[2]), vpaddlq_s16(acc[3])));
}

DDQ_INLINE int32x4_t ddq_reduce_bytes(const int8x16_t *acc) {
    return vpaddlq_s16(vpaddq_s16(vpaddq_s16(vpaddlq_s8(acc[0]), vpaddlq_s8(acc[1])),
                                  vpaddq_s16(vpaddlq_s8(acc[2]), vpaddlq_s8(acc[3]))));
}

/* Sums of P positions x 4 channels over `steps` steps; `xs` bytes from one step of columns to the next. */
DDQ_INLINE void ddq_word_tile(int kind, int P, int32x4_t *sum, const int8_t *x, int xs, const int8_t *w, int steps) {
    int32x4_t acc[6][4];
    DDQ_UNROLL for (int p = 0; p < P; p++)
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            acc[p][c] = vdupq_n_s32(0);
    DDQ_KEEP for (; steps >= 2; steps -= 2, x += 2 * xs, w += 128) {
        DDQ_UNROLL for (int i = 0; i < 2; i++) {
            if (kind == DDQ_WIDE)
                ddq_wide_step(P, acc, x + i * xs, w + 64 * i);
            else
                ddq_dot_step(P, acc, x + i * xs, w + 64 * i);
        }
    }
    if (steps) {
        if (kind == DDQ_WIDE)
            ddq_wide_step(P, acc, x, w);
        else
            ddq_dot_step(P, acc, x, w);
    }
    DDQ_UNROLL for (int p = 0; p < P; p++)
        sum[p] = ddq_reduce_words(acc[p]);
}

DDQ_INLINE void ddq_half_tile(int P, int32x4_t *sum, const int8_t *x, int xs, const int8_t *w, int steps, int block) {
    DDQ_UNROLL for (int p = 0; p < P; p++)
        sum[p] = vdupq_n_s32(0);
    DDQ_KEEP do {
        int16x8_t acc[6][4];
        int left = steps < block ? steps : block;
        steps -= left;
        ddq_half_step(P, acc, x, w, 1);
        x += xs;
        w += 64;
        DDQ_KEEP for (left--; left >= 2; left -= 2, x += 2 * xs, w += 128) {
            ddq_half_step(P, acc, x, w, 0);
            ddq_half_step(P, acc, x + xs, w + 64, 0);
        }
        if (left) {
            ddq_half_step(P, acc, x, w, 0);
            x += xs;
            w += 64;
        }
        DDQ_UNROLL for (int p = 0; p < P; p++)
            sum[p] = vaddq_s32(sum[p], ddq_reduce_halves(acc[p]));
    } while (steps);
}

DDQ_INLINE void ddq_byte_tile(int P, int32x4_t *sum, const int8_t *x, int xs, const int8_t *w, int steps, int block) {
    DDQ_UNROLL for (int p = 0; p < P; p++)
        sum[p] = vdupq_n_s32(0);
    DDQ_KEEP do {
        int8x16_t acc[6][4];
        int left = steps < block ? steps : block;
        steps -= left;
        ddq_byte_step(P, acc, x, w, 1);
        x += xs;
        w += 64;
        DDQ_KEEP for (left--; left >= 4; left -= 4, x += 4 * xs, w += 256) {
            DDQ_UNROLL for (int i = 0; i < 4; i++)
                ddq_byte_step(P, acc, x + i * xs, w + 64 * i, 0);
        }
        DDQ_KEEP for (; left; left--, x += xs, w += 64)
            ddq_byte_step(P, acc, x, w, 0);
        DDQ_UNROLL for (int p = 0; p < P; p++)
            sum[p] = vaddq_s32(sum[p], ddq_reduce_bytes(acc[p]));
    } while (steps);
}

DDQ_INLINE void ddq_tile(int kind, int P, int32x4_t *sum, const int8_t *x, int xs, const int8_t *w, int steps,
                         int block) {
    if (kind == DDQ_HALF)
        ddq_half_tile(P, sum, x, xs, w, steps, block);
    else if (kind == DDQ_BYTE)
        ddq_byte_tile(P, sum, x, xs, w, steps, block);
    else
        ddq_word_tile(kind, P, sum, x, xs, w, steps);
}

#endif
