/* What ddq_helium_depthwise.c keeps in scratch of 16 channels: parameters in the order of the sums' lanes, weights as
 * int8, the input rows of one row of outputs.
 *
 * Input rows lie as [column][kernel row][16] with in_zero beside the image, so that the taps of a window follow each
 * other; with dilated columns each window has its own copy.
 */
#ifndef DDQ_HELIUM_BLOCK_H
#define DDQ_HELIUM_BLOCK_H

#include "ddq_helium.h"

enum { PARAMETERS = 4 * DDQ_LANES };

/* Sixteen channels of one layer. */
typedef struct {
    const ddq_layer *layer;
    int first, count; /* channels */
    int taps, chunk;  /* of them fit int16 together */
    int width, step;  /* columns of a row; bytes from a window to the next */
    int32_t *bias;    /* then multiplier, left shifts, right shifts: each 16, in the order of channel_of */
    int8_t *weights;  /* [taps][16] */
    int8_t *rows;     /* [column][kernel row][16] */
    uint8_t *codes;   /* [out_w][16], of outputs of less than 8 bits before they are packed */
} block;

static inline int least(int a, int b) { return a < b ? a : b; }

/* Channel of lane 4 j + i: widening halves twice leaves channels 0, 4, 8, 12; 2, 6, …; 1, 5, …; 3, 7, …. */
static inline int channel_of(int lane) { return lane % 4 * 4 + lane / 8 + lane / 4 % 2 * 2; }

static void prepare_parameters(const block *b) {
    const ddq_layer *l = b->layer;
    int32_t *to = b->bias;
#if defined(__ARM_FEATURE_MVE)
    for (int quarter = 0; quarter < 4; quarter++, to += 4) {
        const uint32x4_t channels = vaddq_n_u32(vidupq_n_u32(0, 4), (uint32_t)channel_of(4 * quarter));
        const mve_pred16_t lanes = vcmphiq_u32(vdupq_n_u32((uint32_t)b->count), channels);
        const int32x4_t shift = vldrbq_gather_offset_z_s32(l->shift + b->first, channels, lanes);
        const int32x4_t left = ddq_left_shift(shift, l->rounding);
        vst1q_s32(to, vldrwq_gather_shifted_offset_z_s32(l->bias + b->first, channels, lanes));
        vst1q_s32(to + DDQ_LANES, vldrwq_gather_shifted_offset_z_s32(l->multiplier + b->first, channels, lanes));
        vst1q_s32(to + 2 * DDQ_LANES, left);
        vst1q_s32(to + 3 * DDQ_LANES, vsubq_s32(shift, left));
    }
#else
    for (int lane = 0; lane < DDQ_LANES; lane++)
        to[lane] = l->bias[least(channel_of(lane), b->count - 1) + b->first];
#endif
}

/* Weights of the block as int8, [taps][16]; lanes beyond its channels stay undefined. */
static void prepare_weights(const block *b, int bits) {
    const int per_byte = 8 / bits, row_bytes = (b->taps + per_byte - 1) / per_byte;
    const uint8_t *from = b->layer->weights + (uint32_t)b->first * (uint32_t)row_bytes;
    int8_t *to = b->weights;
    for (int i = 0; i < row_bytes; i++, from += b->count)
        for (int field = 0; field < per_byte; field++, to += DDQ_LANES) {
            const int up = 8 - bits - field * bits;
#if defined(__ARM_FEATURE_MVE)
            const int8x16_t bytes = vldrbq_z_s8((const int8_t *)from, vctp8q((uint32_t)b->count));
            vst1q_s8(to, vshlq_r_s8(vshlq_r_s8(bytes, up), bits - 8));
#else
            for (int c = 0; c < b->count; c++)
                to[c] = (int8_t)((int8_t)(uint8_t)(from[c] << up) >> (8 - bits));
#endif
        }
}

static __attribute__((noinline)) int8_t *fill_columns(int8_t *to, uint8_t code, int columns, int step) {
#if defined(__ARM_FEATURE_MVE)
    const int8x16_t filled = vdupq_n_s8((int8_t)(code - DDQ_OFFSET));
    for (; columns > 0; columns--, to += step)
        vst1q_s8(to, filled);
#else
    for (; columns > 0; columns--, to += step)
        ddq_fill_signed(to, code, DDQ_LANES);
#endif
    return to;
}

/* Codes of the block's channels at positions `depth` codes apart, from code `index` on; lanes beyond them stay
 * undefined. */
static __attribute__((noinline)) void unpack_columns(const block *b, const uint8_t *x, uint32_t index, int depth,
                                                     int columns, int8_t *to, int step) {
    const int bits = b->layer->in_bits, count = b->count;
#if defined(__ARM_FEATURE_MVE)
    if ((b->layer->in_c | depth) * bits % 8 == 0) {
        const uint8_t *from = x + index * (uint32_t)bits / 8;
        for (; columns > 0; columns--, to += step, from += depth * bits / 8)
            vst1q_u8((uint8_t *)to, veorq_u8(ddq_unpacked(from, count, bits), vdupq_n_u8(DDQ_OFFSET)));
        return;
    }
#endif
    for (; columns > 0; columns--, to += step, index += (uint32_t)depth)
        ddq_copy_signed(to, x, index, count, bits);
}

/* The same from codes of 8 bits. */
static inline void copy_columns(const uint8_t *from, int depth, int count, int columns, int8_t *to, int step) {
#if defined(__ARM_FEATURE_MVE)
    const mve_pred16_t lanes = vctp8q((uint32_t)count);
    const uint8x16_t flip = vdupq_n_u8(DDQ_OFFSET);
    for (; columns > 0; columns--, to += step, from += depth)
        vst1q_u8((uint8_t *)to, veorq_u8(vld1q_z_u8(from, lanes), flip));
#else
    for (; columns > 0; columns--, to += step, from += depth)
        ddq_copy_bytes(to, from, count);
#endif
}

/* The input rows of one row of outputs. Windows of neighbouring outputs share columns, unless taps lie apart: then tap
 * kx of all windows is copied in one go. */
static __attribute__((noinline)) void copy_rows(const block *b, const uint8_t *x, int oy) {
    const ddq_layer *l = b->layer;
    const int height = l->kernel_h * DDQ_LANES, apart = l->dilation_w > 1, spacing = apart ? l->stride_w : 1;
    const int columns = apart ? l->out_w : b->width, step = apart ? l->kernel_w * height : height;
    const int depth = l->in_c, in_h = l->in_h, in_w = l->in_w, kernel_h = l->kernel_h, down = l->dilation_h;
    const int bytes = l->in_bits == 8, count = b->count, runs = apart ? l->kernel_w : 1;
    const uint8_t outside = l->in_zero;
    int8_t *first_row = b->rows;
    for (int kx = 0, first = -l->pad_left; kx < runs; kx++, first += l->dilation_w, first_row += height) {
        const int before = first >= 0 ? 0 : spacing == 1 ? -first : (spacing - 1 - first) / spacing;
        const int until = first >= in_w ? 0 : spacing == 1 ? in_w - first : (in_w - 1 - first) / spacing + 1;
        const int begin = least(before, columns), copied = least(until, columns) - begin;
        int h = oy * l->stride_h - l->pad_top;
        int8_t *to = first_row;
        for (int ky = 0; ky < kernel_h; ky++, h += down, to += DDQ_LANES) {
            if (h < 0 || h >= in_h || copied <= 0) {
                fill_columns(to, outside, columns, step);
                continue;
            }
            const uint32_t position = (uint32_t)(h * in_w + first + begin * spacing);
            const uint32_t index = position * (uint32_t)depth + (uint32_t)b->first;
            int8_t *inside = fill_columns(to, outside, begin, step);
            if (bytes)
                copy_columns(x + index, spacing * depth, count, copied, inside, step);
            else
                unpack_columns(b, x, index, spacing * depth, copied, inside, step);
            fill_columns(inside + copied * step, outside, columns - begin - copied, step);
        }
    }
}

#endif
