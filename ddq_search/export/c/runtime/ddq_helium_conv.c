/* Convolutions, pointwise, grouped and linear layers on Helium: columns of int8 codes times rows of weights.
 *
 * Three windows are gathered into columns (at the end of the image one at a time); then every pair of weight rows is
 * multiplied with the three columns, or four rows with the one (ddq_helium_products.h), and the sums of all channels
 * are requantized four lanes at a time.
 *
 * Scratch: three columns; sums of three columns, int32, channels of a group rounded up to four; their codes, before
 * they are packed.
 */
#include "ddq_helium_products.h"

typedef struct {
    int h, w; /* of the window's first tap, in the input */
} place;

/* One row of taps of a window: taps beside the image hold in_zero. Returns where the next row goes. */
static int8_t *gather_row(const ddq_layer *l, const uint8_t *x, int h, int left, int channel, int depth, int8_t *to) {
    const uint32_t row = (uint32_t)h * l->in_w;
    if (depth != l->in_c || l->dilation_w != 1) {
        for (int kx = 0, w = left; kx < l->kernel_w; kx++, w += l->dilation_w, to += depth)
            if (w < 0 || w >= l->in_w)
                ddq_fill_signed(to, l->in_zero, depth);
            else
                ddq_copy_signed(to, x, (row + (uint32_t)w) * l->in_c + (uint32_t)channel, depth, l->in_bits);
        return to;
    }
    const int right = left + l->kernel_w;
    const int begin = left > 0 ? left : 0, end = right < l->in_w ? right : l->in_w;
    const int inside = end > begin ? end - begin : 0, before = inside ? begin - left : l->kernel_w;
    if (inside < l->kernel_w) {
        ddq_fill_signed(to, l->in_zero, before * depth);
        ddq_fill_signed(to + (before + inside) * depth, l->in_zero, (l->kernel_w - before - inside) * depth);
    }
    if (inside)
        ddq_copy_signed(to + before * depth, x, (row + (uint32_t)begin) * l->in_c, inside * depth, l->in_bits);
    return to + l->kernel_w * depth;
}

static inline void gather(const ddq_layer *l, const uint8_t *x, place at, int group, int8_t *column) {
    const int depth = l->in_c / l->groups;
    for (int ky = 0, h = at.h; ky < l->kernel_h; ky++, h += l->dilation_h) {
        if (h < 0 || h >= l->in_h) {
            ddq_fill_signed(column, l->in_zero, l->kernel_w * depth);
            column += l->kernel_w * depth;
        } else {
            column = gather_row(l, x, h, at.w, group * depth, depth, column);
        }
    }
}

/* Requantizes the sums of `pixels` columns into rows of codes `stride` bytes apart; channel `first` is the first. */
static inline __attribute__((always_inline)) void requantize_tile(const ddq_layer *l, const int32_t *sums, int first,
                                                                  int rows, int pixels, int scaled, int rounding,
                                                                  uint8_t *codes, int stride) {
#if defined(__ARM_FEATURE_MVE)
    const uint64x2_t pairs = vreinterpretq_u64_u32(vsetq_lane_u32((uint32_t)pixels * 8, vdupq_n_u32(0), 2));
    const int32x4_t low = vdupq_n_s32(l->low), high = vdupq_n_s32(l->high);
    const int32_t *bias = l->bias + first, *multiplier = l->multiplier + first;
    const int8_t *shift = l->shift + first;
    for (int left_over = rows; left_over > 0; left_over -= 4) {
        const mve_pred16_t lanes = vctp32q((uint32_t)left_over);
        const int32x4_t b = vldrwq_z_s32(bias, lanes), m = vldrwq_z_s32(multiplier, lanes);
        const int32x4_t n = vldrbq_z_s32(shift, lanes);
        const int32x4_t left = ddq_left_shift(n, rounding), right = vsubq_s32(n, left);
        uint8_t *to = codes;
        for (int i = 0; i < pixels; i++, to += stride) {
            int32x4_t acc = vreinterpretq_s32_s64(vldrdq_gather_offset_s64((const int64_t *)(const void *)sums, pairs));
            sums += 2;
            if (scaled)
                acc = vshlq_r_s32(acc, -scaled);
            acc = ddq_requantize4(vaddq_s32(acc, b), m, left, right, rounding);
            acc = vminq_s32(vmaxq_s32(vaddq_n_s32(acc, l->out_zero), low), high);
            vstrbq_p_s32((int8_t *)to, acc, lanes);
        }
        sums += 2 * pixels;
        codes += 4, bias += 4, multiplier += 4, shift += 4;
    }
#else
    (void)rounding;
    for (int c = 0; c < rows; c++)
        for (int i = 0; i < pixels; i++) {
            const int32_t sum = sums[(c / 2 * pixels + i) * 2 + c % 2] / (1 << scaled);
            codes[i * stride + c] = ddq_code(l, sum + l->bias[first + c], first + c);
        }
#endif
}

static inline __attribute__((always_inline)) void convolve(const ddq_layer *l, const uint8_t *x, uint8_t *y,
                                                           uint8_t *scratch, const int bits) {
    const int rows = l->out_c / l->groups, count = l->out_h * l->out_w;
    const int k = l->kernel_h * l->kernel_w * (l->in_c / l->groups);
    const int row_bytes = (k * bits + 7) / 8, column_bytes = (row_bytes + 15) / 16 * (16 * 8 / bits);
    int8_t *columns = (int8_t *)scratch;
    int32_t *sums = (int32_t *)(void *)(scratch + PIXELS * column_bytes);
    uint8_t *packed_later = (uint8_t *)(sums + PIXELS * ((rows + 3) & ~3));
    place at = {-l->pad_top, -l->pad_left};
    for (int p = 0, ox = 0; p < count;) {
        const int pixels = count - p >= PIXELS ? PIXELS : 1;
        place windows[PIXELS];
        for (int i = 0; i < pixels; i++) {
            windows[i] = at;
            at.w += l->stride_w;
            if (++ox == l->out_w)
                ox = 0, at.h += l->stride_h, at.w = -l->pad_left;
        }
        for (int group = 0; group < l->groups; group++) {
            const int first = group * rows;
            for (int i = 0; i < pixels; i++) {
                gather(l, x, windows[i], group, columns + i * column_bytes);
                spread(columns + i * column_bytes, k, bits);
            }
            const uint8_t *row = l->weights + (uint32_t)first * (uint32_t)row_bytes;
            if (pixels == PIXELS)
                products3(row, row_bytes, rows, columns, column_bytes, sums, bits);
            else
                products1(row, row_bytes, rows, columns, sums, bits);
            const uint32_t index = (uint32_t)p * l->out_c + (uint32_t)first;
            uint8_t *codes = l->out_bits == 8 ? y + index : packed_later;
            const int stride = l->out_bits == 8 ? l->out_c : rows, scaled = SCALED(bits);
            if (l->rounding == DDQ_DOUBLE)
                requantize_tile(l, sums, first, rows, pixels, scaled, DDQ_DOUBLE, codes, stride);
            else
                requantize_tile(l, sums, first, rows, pixels, scaled, DDQ_SINGLE, codes, stride);
            if (l->out_bits < 8)
                for (int i = 0; i < pixels; i++)
                    ddq_pack(y, index + (uint32_t)(i * l->out_c), codes + i * rows, rows, l->out_bits);
        }
        p += pixels;
    }
}

void ddq_helium_conv_w8(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    convolve(layer, x, y, scratch, 8);
}

void ddq_helium_conv_w4(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    convolve(layer, x, y, scratch, 4);
}

void ddq_helium_conv_w2(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    convolve(layer, x, y, scratch, 2);
}
