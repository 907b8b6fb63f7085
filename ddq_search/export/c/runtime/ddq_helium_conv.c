/* Convolutions, pointwise, grouped and linear layers on Helium: columns of int8 codes times rows of weights.
 *
 * Three windows are gathered into columns (at the end of the image one at a time); then every pair of weight rows is
 * multiplied with the three columns, or four rows with the one (ddq_helium_products.h, also the layout of weights),
 * and the sums of all channels are requantized four lanes at a time.
 *
 * Scratch: three columns; sums of three columns, int32, channels of a group rounded up to four; their codes, before
 * they are packed.
 */
#include "ddq_helium_products.h"

/* What all tiles of a layer have in common. */
typedef struct {
    int bits;   /* of weights */
    int k;      /* weights per row */
    int depth;  /* input channels of a group */
    int rows;   /* output channels of a group */
    int column_bytes;
    int8_t *columns, *column; /* all of them, the one that is gathered */
    int32_t *sums;
    product_rows *rows3, *rows1;
    spreading last;   /* codes of a column */
    int h_end, w_end; /* windows from 0 to here are runs of bytes inside the image */
    uint32_t down;    /* codes from a row of such a window to the next */
    products_job job;
} tiling;

/* `rows` runs of bytes, `down` apart, to places `step` apart. */
static __attribute__((noinline)) void copy_rows(const uint8_t *from, uint32_t down, int rows, int run, int8_t *to,
                                                int step) {
    for (; rows > 0; rows--, from += down, to += step)
        ddq_copy_bytes(to, from, run);
}

/* The same from code `first` on of a packed tensor, `down` codes apart. */
static __attribute__((noinline)) void unpack_rows(const uint8_t *x, uint32_t first, uint32_t down, int rows, int run,
                                                  int bits, int8_t *to, int step) {
    for (; rows > 0; rows--, first += down, to += step)
        ddq_copy_signed(to, x, first, run, bits);
}

static inline void copy_codes(const ddq_layer *l, const uint8_t *x, uint32_t first, uint32_t down, int rows, int run,
                              int8_t *to, int step) {
    if (l->in_bits == 8)
        copy_rows(x + first, down, rows, run, to, step);
    else
        unpack_rows(x, first, down, rows, run, l->in_bits, to, step);
}

typedef struct {
    int begin, end;
} taps;

/* Taps of a window from `start` on that lie inside [0, size). */
static inline taps inside(int start, int dilation, int count, int size) {
    if (start >= 0 && start + (count - 1) * dilation < size)
        return (taps){0, count};
    const int begin = start < 0 ? (dilation - 1 - start) / dilation : 0;
    const int end = start < size ? (size - 1 - start) / dilation + 1 : 0;
    return (taps){begin, end < count ? end : count};
}

/* The window at (h, w) of a group's channels; positions beside the image hold in_zero. */
static __attribute__((noinline)) void gather(const ddq_layer *l, const uint8_t *x, int h, int w, int channel,
                                             const tiling *t) {
    const taps rows = inside(h, l->dilation_h, l->kernel_h, l->in_h);
    const taps columns = inside(w, l->dilation_w, l->kernel_w, l->in_w);
    const int depth = t->depth, height = rows.end - rows.begin, width = columns.end - columns.begin;
    const int step = l->kernel_w * depth, whole = depth == l->in_c && l->dilation_w == 1;
    int8_t *to = t->column;
    if (height * width != l->kernel_h * l->kernel_w) {
        ddq_fill_signed(to, l->in_zero, t->k);
        if (height <= 0 || width <= 0)
            return;
    }
    const int top = h + rows.begin * l->dilation_h, left = w + columns.begin * l->dilation_w;
    uint32_t first = ((uint32_t)top * l->in_w + (uint32_t)left) * l->in_c + (uint32_t)channel;
    const int runs = whole ? 1 : width, run = whole ? width * depth : depth;
    to += rows.begin * step + columns.begin * depth;
    for (int i = 0; i < runs; i++, first += (uint32_t)l->dilation_w * l->in_c, to += depth)
        copy_codes(l, x, first, t->down, height, run, to, step);
}

/* Requantizes the sums of `pixels` columns into rows of codes `stride` bytes apart; `first` is the first channel. */
static inline __attribute__((always_inline)) void requantize_tile(const ddq_layer *l, const tiling *t, int first,
                                                                  const int pixels, const int rounding,
                                                                  uint8_t *codes, int stride) {
    const int scaled = t->bits == 8 ? 0 : 8 - t->bits;
    const int32_t *sums = t->sums;
#if defined(__ARM_FEATURE_MVE)
    const uint64x2_t pairs = vreinterpretq_u64_u32(vsetq_lane_u32((uint32_t)pixels * 8, vdupq_n_u32(0), 2));
    const int32x4_t low = vdupq_n_s32(l->low), high = vdupq_n_s32(l->high);
    const int32_t *bias = l->bias + first, *multiplier = l->multiplier + first;
    const int8_t *shift = l->shift + first;
    const int out_zero = l->out_zero;
    for (int left_over = t->rows; left_over > 0; left_over -= 4) {
        const mve_pred16_t lanes = vctp32q((uint32_t)left_over);
        const int32x4_t b = vldrwq_z_s32(bias, lanes), m = vldrwq_z_s32(multiplier, lanes);
        const int32x4_t n = vldrbq_z_s32(shift, lanes);
        const int32x4_t left = ddq_left_shift(n, rounding), right = vsubq_s32(n, left);
        uint8_t *to = codes;
        for (int i = 0; i < pixels; i++, to += stride, sums += 2) {
            int32x4_t acc = vreinterpretq_s32_s64(vldrdq_gather_offset_s64((const int64_t *)(const void *)sums, pairs));
            acc = ddq_requantize4(vaddq_s32(vshlq_r_s32(acc, -scaled), b), m, left, right, rounding);
            acc = vminq_s32(vmaxq_s32(vaddq_n_s32(acc, out_zero), low), high);
            vstrbq_p_s32((int8_t *)to, acc, lanes);
        }
        sums += 2 * pixels;
        codes += 4, bias += 4, multiplier += 4, shift += 4;
    }
#else
    (void)rounding;
    for (int c = 0; c < t->rows; c++)
        for (int i = 0; i < pixels; i++) {
            const int32_t sum = sums[(c / 2 * pixels + i) * 2 + c % 2] / (1 << scaled);
            codes[i * stride + c] = ddq_code(l, sum + l->bias[first + c], first + c);
        }
#endif
}

static __attribute__((noinline)) void requantize3(const ddq_layer *l, const tiling *t, int first, uint8_t *codes,
                                                  int stride) {
    if (l->rounding == DDQ_DOUBLE)
        requantize_tile(l, t, first, PIXELS, DDQ_DOUBLE, codes, stride);
    else
        requantize_tile(l, t, first, PIXELS, DDQ_SINGLE, codes, stride);
}

static __attribute__((noinline)) void requantize1(const ddq_layer *l, const tiling *t, int first, uint8_t *codes) {
    if (l->rounding == DDQ_DOUBLE)
        requantize_tile(l, t, first, 1, DDQ_DOUBLE, codes, 0);
    else
        requantize_tile(l, t, first, 1, DDQ_SINGLE, codes, 0);
}

/* Outputs of one group at `pixels` positions from p on, whose columns are ready. */
static void finish_tile(const ddq_layer *l, tiling *t, int p, int pixels, int first, uint8_t *y) {
    const uint8_t *row = l->weights + (uint32_t)first * (uint32_t)t->job.row_bytes;
    const uint32_t index = (uint32_t)p * l->out_c + (uint32_t)first;
    uint8_t *later = (uint8_t *)(t->sums + PIXELS * ((t->rows + 3) & ~3));
    uint8_t *codes = l->out_bits == 8 ? y + index : later;
    if (pixels == PIXELS) {
        products3(t->rows3, &t->job, row, t->rows, t->sums);
        requantize3(l, t, first, codes, l->out_bits == 8 ? l->out_c : t->rows);
    } else {
        products1(t->rows1, &t->job, row, t->rows, t->sums);
        requantize1(l, t, first, codes);
    }
    if (l->out_bits == 8)
        return;
    if (t->rows == l->out_c)
        ddq_pack(y, index, later, pixels * t->rows, l->out_bits);
    else
        for (int i = 0; i < pixels; i++)
            ddq_pack(y, index + (uint32_t)(i * l->out_c), later + i * t->rows, t->rows, l->out_bits);
}

/* Windows of one position that follow each other in memory: nothing to look up. */
static void multiply(const ddq_layer *l, const uint8_t *x, uint8_t *y, tiling *t) {
    const int count = l->out_h * l->out_w;
    for (int p = 0, pixels; p < count; p += pixels) {
        pixels = count - p >= PIXELS ? PIXELS : 1;
        if (t->column_bytes == t->k) {
            copy_codes(l, x, (uint32_t)p * l->in_c, 0, 1, pixels * t->k, t->columns, 0);
        } else {
            for (int i = 0; i < pixels; i++) {
                int8_t *column = t->columns + i * t->column_bytes;
                copy_codes(l, x, (uint32_t)(p + i) * l->in_c, 0, 1, t->k, column, 0);
                spread(column, &t->last);
            }
        }
        finish_tile(l, t, p, pixels, 0, y);
    }
}

static void convolve(const ddq_layer *l, const uint8_t *x, uint8_t *y, tiling *t) {
    const int count = l->out_h * l->out_w, run = l->kernel_w * t->depth;
    for (int p = 0, ox = 0, h = -l->pad_top, w = -l->pad_left, pixels; p < count; p += pixels) {
        int at[PIXELS][2];
        pixels = count - p >= PIXELS ? PIXELS : 1;
        for (int i = 0; i < pixels; i++) {
            at[i][0] = h, at[i][1] = w;
            w += l->stride_w;
            if (++ox == l->out_w)
                ox = 0, h += l->stride_h, w = -l->pad_left;
        }
        for (int group = 0; group < l->groups; group++) {
            for (int i = 0; i < pixels; i++) {
                t->column = t->columns + i * t->column_bytes;
                if ((unsigned)at[i][0] < (unsigned)t->h_end && (unsigned)at[i][1] < (unsigned)t->w_end)
                    copy_rows(x + ((uint32_t)at[i][0] * l->in_w + (uint32_t)at[i][1]) * l->in_c, t->down, l->kernel_h,
                              run, t->column, run);
                else
                    gather(l, x, at[i][0], at[i][1], group * t->depth, t);
                spread(t->column, &t->last);
            }
            finish_tile(l, t, p, pixels, group * t->rows, y);
        }
    }
}

static void execute(const ddq_layer *l, const uint8_t *x, uint8_t *y, uint8_t *scratch, int bits, product_rows *rows3,
                    product_rows *rows1) {
    const int depth = l->in_c / l->groups, rows = l->out_c / l->groups, k = l->kernel_h * l->kernel_w * depth;
    const int step = DDQ_LANES * 8 / bits, padded = (k + step - 1) / step * step, row_bytes = (k * bits + 7) / 8;
    const int dense = l->kernel_h * l->kernel_w * l->stride_h * l->stride_w * l->groups == 1
                      && l->pad_top + l->pad_left == 0 && l->in_h == l->out_h && l->in_w == l->out_w;
    const spreading last = spread_of(k, bits);
    const int column_bytes = last.moves ? padded : k, bytes = l->in_bits == 8 && l->groups == 1 && l->dilation_w == 1;
    const int half_bytes = half_block(row_bytes, bits);
    const int overshoot = -row_bytes & (half_bytes ? DDQ_LANES / 2 - 1 : DDQ_LANES - 1);
    const int h_end = l->in_h - (l->kernel_h - 1) * l->dilation_h, w_end = l->in_w - l->kernel_w + 1;
    int8_t *columns = (int8_t *)scratch;
    tiling t = {bits, k, depth, rows, column_bytes, columns, columns, (int32_t *)(void *)(scratch + PIXELS * padded),
                rows3, rows1, last, bytes && h_end > 0 ? h_end : 0, bytes && w_end > 0 ? w_end : 0,
                (uint32_t)l->dilation_h * l->in_w * l->in_c,
                {{columns, columns + column_bytes, columns + 2 * column_bytes}, 0, row_bytes - half_bytes, overshoot,
                 0, 0, 0, 0, half_bytes, row_bytes}};
    if (dense)
        multiply(l, x, y, &t);
    else
        convolve(l, x, y, &t);
}

void ddq_helium_conv_w8(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    execute(layer, x, y, scratch, 8, rows3_w8, rows1_w8);
}

void ddq_helium_conv_w4(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    execute(layer, x, y, scratch, 4, rows3_w4, rows1_w4);
}

void ddq_helium_conv_w2(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    execute(layer, x, y, scratch, 2, rows3_w2, rows1_w2);
}
