/* Register tiles: some output positions x 4 channels, K in steps of 16, from columns and unpacked weights (layouts in
 * ddq_neon_columns.h). Products meet in lanes that are added up at the end of a block of steps.
 *
 *   DDQ_WIDE   4 positions; two 8 x 8-bit products per int16 lane, added to int32 lanes at every step
 *   DDQ_HALF   6 positions; products of narrow codes stay in int16 lanes for a block of steps
 *   DDQ_BYTE   6 positions; products of two narrow codes stay in int8 lanes for a block of steps
 *   DDQ_DOT    4 positions; the dot-product instruction, or DDQ_WIDE's arithmetic where the core has none
 */
#ifndef DDQ_NEON_TILES_H
#define DDQ_NEON_TILES_H

#include "ddq_neon_blocks.h"
#include "ddq_neon_columns.h"

enum { DDQ_WIDE, DDQ_HALF, DDQ_BYTE, DDQ_DOT };

/* Output positions of a tile. */
DDQ_INLINE uint32_t ddq_tile_pixels(int kind) { return kind == DDQ_HALF || kind == DDQ_BYTE ? 6 : 4; }

/* Lanes of four channels, added up: one int32 per channel. */
DDQ_INLINE int32x4_t ddq_reduce_words(const int32x4_t *acc) {
    return vpaddq_s32(vpaddq_s32(acc[0], acc[1]), vpaddq_s32(acc[2], acc[3]));
}

#if !DDQ_ASSEMBLY
static inline void ddq_half_block(int32_t *sum, const int8_t *x, const int8_t *w, int steps) {
    for (int p = 0; p < 6; p++) {
        int32x4_t total[4];
        for (int c = 0; c < 4; c++) {
            int16x8_t acc = vdupq_n_s16(0);
            for (int i = 0; i < steps; i++) {
                const int8x16_t u = vld1q_s8(x + 96 * i + 16 * p), v = vld1q_s8(w + 64 * i + 16 * c);
                acc = vmlal_high_s8(vmlal_s8(acc, vget_low_s8(v), vget_low_s8(u)), v, u);
            }
            total[c] = vpaddlq_s16(acc);
        }
        vst1q_s32(sum + 4 * p, ddq_reduce_words(total));
    }
}

static inline void ddq_byte_block(int32_t *sum, const int8_t *x, const int8_t *w, int steps, int block) {
    (void)block;
    for (int p = 0; p < 6; p++) {
        int16x8_t total[4];
        for (int c = 0; c < 4; c++) {
            int8x16_t acc = vdupq_n_s8(0);
            for (int i = 0; i < steps; i++)
                acc = vmlaq_s8(acc, vld1q_s8(w + 64 * i + 16 * c), vld1q_s8(x + 96 * i + 16 * p));
            total[c] = vpaddlq_s8(acc);
        }
        vst1q_s32(sum + 4 * p,
                  vpaddlq_s16(vpaddq_s16(vpaddq_s16(total[0], total[1]), vpaddq_s16(total[2], total[3]))));
    }
}

static inline void ddq_wide_block(int32_t *sum, const int8_t *x, const int8_t *w, int steps) {
    for (int p = 0; p < 4; p++) {
        int32x4_t total[4];
        for (int c = 0; c < 4; c++) {
            total[c] = vdupq_n_s32(0);
            for (int i = 0; i < steps; i++) {
                const int8x16_t u = vld1q_s8(x + 64 * i + 16 * p), v = vld1q_s8(w + 64 * i + 16 * c);
                total[c] = vpadalq_s16(total[c], vmlal_high_s8(vmull_s8(vget_low_s8(v), vget_low_s8(u)), v, u));
            }
        }
        vst1q_s32(sum + 4 * p, ddq_reduce_words(total));
    }
}
#endif

DDQ_INLINE void ddq_dot_step(int32x4_t acc[][4], const int8_t *x, const int8_t *w, int first) {
    int8x16_t u[4], v[4];
    DDQ_UNROLL for (int i = 0; i < 4; i++)
        v[i] = vld1q_s8(w + 16 * i);
    DDQ_UNROLL for (int i = 0; i < 4; i++)
        u[i] = vld1q_s8(x + 16 * i);
    DDQ_LOADED(v);
    DDQ_LOADED(u);
    DDQ_UNROLL for (int p = 0; p < 4; p++)
        DDQ_UNROLL for (int c = 0; c < 4; c++)
            acc[p][c] = ddq_dot(first ? vdupq_n_s32(0) : acc[p][c], v[c], u[p]);
}

DDQ_INLINE void ddq_dot_block(int32_t *sum, const int8_t *x, const int8_t *w, int steps) {
    int32x4_t acc[4][4];
    if (steps % 2 == 0) {
        ddq_dot_step(acc, x, w, 1);
        ddq_dot_step(acc, x + 64, w + 64, 0);
        x += 64;
        w += 64;
    } else {
        ddq_dot_step(acc, x, w, 1);
    }
    DDQ_KEEP for (steps = (steps - 1) / 2; steps; steps--) {
        ddq_dot_step(acc, x + 64, w + 64, 0);
        ddq_dot_step(acc, x + 128, w + 128, 0);
        x += 128;
        w += 128;
    }
    DDQ_UNROLL for (int p = 0; p < 4; p++)
        vst1q_s32(sum + 4 * p, ddq_reduce_words(acc[p]));
}

/* Sums [position][4 channels] over `steps` steps; `block` is what narrow lanes hold. */
DDQ_INLINE void ddq_tile(int kind, int32_t *sum, const int8_t *x, const int8_t *w, int steps, int block) {
    int32_t part[24];
    if (kind == DDQ_WIDE) {
        ddq_wide_block(sum, x, w, steps);
        return;
    }
    if (kind == DDQ_DOT) {
        ddq_dot_block(sum, x, w, steps);
        return;
    }
    for (int done = 0; done < steps; done += block) {
        const int count = steps - done < block ? steps - done : block;
        int32_t *to = done ? part : sum;
        if (kind == DDQ_HALF)
            ddq_half_block(to, x + 96 * done, w + 64 * done, count);
        else
            ddq_byte_block(to, x + 96 * done, w + 64 * done, count, block);
        if (done) {
            DDQ_UNROLL for (int i = 0; i < 24; i += 4)
                vst1q_s32(sum + i, vaddq_s32(vld1q_s32(sum + i), vld1q_s32(part + i)));
        }
    }
}

#endif
