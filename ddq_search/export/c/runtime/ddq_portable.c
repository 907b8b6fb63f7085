/* Weighted layers in plain C99: any geometry, any widths, codebook and multipoint weights.
 *
 * Gathers one window of codes minus the zero point into int16 columns, then takes its product with every row of
 * weights. Scratch: 2 * K bytes. Accumulators: int32; the integer program bounds |bias| + sum|w| * max|x - in_zero| by
 * INT32_MAX for every channel, and partial sums in any order stay below.
 */
#include "ddq_kernels.h"

static void gather(const ddq_layer *l, const uint8_t *x, int oy, int ox, int group, int16_t *column) {
    const int depth = l->in_c / l->groups;
    for (int ky = 0; ky < l->kernel_h; ky++) {
        const int h = oy * l->stride_h - l->pad_top + ky * l->dilation_h;
        for (int kx = 0; kx < l->kernel_w; kx++) {
            const int w = ox * l->stride_w - l->pad_left + kx * l->dilation_w;
            const int inside = h >= 0 && h < l->in_h && w >= 0 && w < l->in_w;
            if (!inside) {
                for (int c = 0; c < depth; c++)
                    *column++ = 0;
                continue;
            }
            const uint32_t first = ((uint32_t)h * l->in_w + (uint32_t)w) * l->in_c + (uint32_t)(group * depth);
            for (int c = 0; c < depth; c++)
                *column++ = (int16_t)(ddq_get(x, first + (uint32_t)c, l->in_bits) - l->in_zero);
        }
    }
}

static int32_t product8(const uint8_t *row, const int16_t *column, int k, int32_t acc) {
    for (int i = 0; i < k; i++)
        acc += (int8_t)row[i] * column[i];
    return acc;
}

/* Codes of 4 bits in a byte, lowest first, and their sign. */
static int32_t nibble(int byte, int place) {
    return ((byte >> (4 * place) & 15) ^ 8) - 8;
}

static int32_t product4(const uint8_t *row, const int16_t *column, int k, int32_t acc) {
    int i = 0;
    for (; i + 1 < k; i += 2, row++)
        acc += nibble(*row, 0) * column[i] + nibble(*row, 1) * column[i + 1];
    return i < k ? acc + nibble(*row, 0) * column[i] : acc;
}

static int32_t crumb(int byte, int place) {
    return ((byte >> (2 * place) & 3) ^ 2) - 2;
}

static int32_t product2(const uint8_t *row, const int16_t *column, int k, int32_t acc) {
    int i = 0;
    for (; i + 3 < k; i += 4, row++)
        acc += crumb(*row, 0) * column[i] + crumb(*row, 1) * column[i + 1] + crumb(*row, 2) * column[i + 2] +
               crumb(*row, 3) * column[i + 3];
    for (int place = 0; i < k; i++, place++)
        acc += crumb(*row, place) * column[i];
    return acc;
}

static int32_t product_levels(const ddq_layer *l, const uint8_t *row, const int16_t *column, int k, int32_t acc) {
    for (int i = 0; i < k; i++)
        acc += l->codebook[ddq_get(row, (uint32_t)i, l->w_bits)] * column[i];
    return acc;
}

static int32_t product(const uint8_t *row, int bits, const int16_t *column, int k, int32_t acc) {
    return bits == 8 ? product8(row, column, k, acc) : bits == 4 ? product4(row, column, k, acc)
                                                                 : product2(row, column, k, acc);
}

/* What the accumulator of channel c is, bias included, from the column of its window. */
typedef int32_t accumulate(const ddq_layer *l, int c, const int16_t *column, int k);

static const uint8_t *row_of(const uint8_t *weights, int c, int k, int bits) {
    return weights + (uint32_t)c * (((uint32_t)k * (uint32_t)bits + 7) / 8);
}

static int32_t values(const ddq_layer *l, int c, const int16_t *column, int k) {
    return product(row_of(l->weights, c, k, l->w_bits), l->w_bits, column, k, l->bias[c]);
}

static int32_t levels(const ddq_layer *l, int c, const int16_t *column, int k) {
    return product_levels(l, row_of(l->weights, c, k, l->w_bits), column, k, l->bias[c]);
}

static int32_t points(const ddq_layer *l, int c, const int16_t *column, int k) {
    int32_t acc = values(l, c, column, k);
    for (int n = 0; n < l->point_count; n++) {
        const ddq_point *p = &l->points[n];
        acc += p->ratio[c] * product(row_of(p->weights, c, k, p->w_bits), p->w_bits, column, k, 0);
    }
    return acc;
}

static void convolve(const ddq_layer *l, const uint8_t *x, uint8_t *y, uint8_t *scratch, accumulate *accumulated) {
    const int k = l->kernel_h * l->kernel_w * (l->in_c / l->groups), rows = l->out_c / l->groups;
    int16_t *column = (int16_t *)(void *)scratch;
    uint32_t index = 0;
    for (int oy = 0; oy < l->out_h; oy++)
        for (int ox = 0; ox < l->out_w; ox++)
            for (int group = 0; group < l->groups; group++) {
                gather(l, x, oy, ox, group, column);
                for (int c = group * rows; c < (group + 1) * rows; c++) {
                    const int32_t acc = accumulated(l, c, column, k);
                    const int64_t code = ddq_requantize_exact(acc, l->multiplier[c], l->shift[c], l->rounding);
                    ddq_put(y, index++, l->out_bits, ddq_clamped(code + l->out_zero, l->low, l->high));
                }
            }
}

void ddq_portable(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    convolve(layer, x, y, scratch, values);
}

void ddq_portable_codebook(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    convolve(layer, x, y, scratch, levels);
}

void ddq_portable_points(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    convolve(layer, x, y, scratch, points);
}
