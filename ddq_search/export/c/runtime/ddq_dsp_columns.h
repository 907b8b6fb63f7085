/* Columns of the Cortex-M DSP kernels: the window of one output position as 16-bit lanes.
 *
 * A column is a sequence of quads: four consecutive codes k, k + 1, k + 2, k + 3 as two words (k, k + 2), (k + 1, k + 3),
 * the order in which UXTB16 leaves them. The columns of two positions share one buffer: quad q of position p takes the
 * words 4 q + 2 p and 4 q + 2 p + 1. Codes after the last are zero.
 */
#ifndef DDQ_DSP_COLUMNS_H
#define DDQ_DSP_COLUMNS_H

#include "ddq_dsp.h"

/* Words from one quad of a column to its next. */
enum { DDQ_DSP_PITCH = 4 };

typedef struct {
    uint32_t *words; /* where the next quad goes */
    int32_t sum;     /* of the codes so far */
} ddq_dsp_column;

static inline void ddq_dsp_put_quad(ddq_dsp_column *column, uint32_t even, uint32_t odd) {
    column->words[0] = even;
    column->words[1] = odd;
    column->words += DDQ_DSP_PITCH;
}

/* Widens codes of 8 bits. */
static inline void ddq_dsp_widen_8(ddq_dsp_column *column, const uint8_t *x, int quads) {
    uint32_t *words = column->words;
    int32_t sum = column->sum;
#define DDQ_DSP_QUAD(i)                                                                                                \
    {                                                                                                                  \
        const uint32_t codes = ddq_dsp_word(x + 4 * (i));                                                              \
        sum = ddq_dsp_bytes(codes, sum);                                                                               \
        words[DDQ_DSP_PITCH * (i)] = ddq_dsp_uxtb16(codes);                                                            \
        words[DDQ_DSP_PITCH * (i) + 1] = ddq_dsp_uxtb16_odd(codes);                                                    \
    }
    for (; quads >= 4; quads -= 4, x += 16, words += 4 * DDQ_DSP_PITCH) {
        DDQ_DSP_QUAD(0)
        DDQ_DSP_QUAD(1)
        DDQ_DSP_QUAD(2)
        DDQ_DSP_QUAD(3)
    }
    for (; quads > 0; quads--, x += 4, words += DDQ_DSP_PITCH)
        DDQ_DSP_QUAD(0)
#undef DDQ_DSP_QUAD
    column->words = words;
    column->sum = sum;
}

/* Widens packed codes of 4 or 2 bits; x is on a byte border. */
static inline void ddq_dsp_widen_packed(ddq_dsp_column *column, const uint8_t *x, int quads, int bits) {
    uint32_t *words = column->words;
    int32_t sum = column->sum;
    if (bits == 4) {
        for (; quads > 0; quads--, x += 2, words += DDQ_DSP_PITCH) {
            const uint32_t codes = ddq_dsp_half(x), spread = codes | codes << 8;
            words[0] = spread & 0x000F000F;
            words[1] = spread >> 4 & 0x000F000F;
            sum = ddq_dsp_bytes(words[0] | words[1] << 8, sum);
        }
    } else {
        for (; quads > 0; quads--, x++, words += DDQ_DSP_PITCH) {
            const uint32_t codes = *x, spread = codes | codes << 12;
            words[0] = spread & 0x00030003;
            words[1] = spread >> 2 & 0x00030003;
            sum = ddq_dsp_bytes(words[0] | words[1] << 8, sum);
        }
    }
    column->words = words;
    column->sum = sum;
}

/* Appends `quads` quads of one code. */
static inline void ddq_dsp_fill(ddq_dsp_column *column, uint32_t code, int quads) {
    column->sum += (int32_t)code * 4 * quads;
    for (const uint32_t pair = code | code << 16; quads > 0; quads--)
        ddq_dsp_put_quad(column, pair, pair);
}

/* Appends `count` bytes, the last quad filled with zeros. */
static inline void ddq_dsp_widen_bytes(ddq_dsp_column *column, const uint8_t *x, int count) {
    ddq_dsp_widen_8(column, x, count >> 2);
    x += count & ~3;
    count &= 3;
    if (count) {
        const uint32_t codes = x[0] | (count > 1 ? (uint32_t)x[1] << 8 : 0) | (count > 2 ? (uint32_t)x[2] << 16 : 0);
        column->sum = ddq_dsp_bytes(codes, column->sum);
        ddq_dsp_put_quad(column, ddq_dsp_uxtb16(codes), ddq_dsp_uxtb16_odd(codes));
    }
}

/* Widens the `count` bytes of one position; returns their sum. */
__attribute__((noinline)) static int32_t ddq_dsp_widen_pixel(const uint8_t *x, int count, uint32_t *words) {
    ddq_dsp_column column = {words, 0};
    ddq_dsp_widen_bytes(&column, x, count);
    return column.sum;
}

/* Appends `quads` quads that start at code `index` of the input, a multiple of four. */
static inline void ddq_dsp_widen(ddq_dsp_column *column, const ddq_layer *layer, const uint8_t *x, uint32_t index,
                                 int quads) {
    if (layer->in_bits == 8)
        ddq_dsp_widen_8(column, x + index, quads);
    else
        ddq_dsp_widen_packed(column, x + index * layer->in_bits / 8, quads, layer->in_bits);
}

/* Copies a window as bytes, code by code where it must. */
static inline void ddq_dsp_copy_window(const ddq_layer *layer, const uint8_t *x, int top, int left, int first, int depth,
                                       int inside, uint8_t *bytes) {
    const int run = layer->groups == 1 && layer->dilation_w == 1 ? layer->kernel_w * depth : 0;
    for (int row = 0; row < layer->kernel_h; row++) {
        const int in_y = top + row * layer->dilation_h;
        if (inside && run && layer->in_bits == 8) {
            const uint8_t *from = x + ((uint32_t)in_y * layer->in_w + (uint32_t)left) * layer->in_c;
            int count = run;
            for (; count >= 4; count -= 4, from += 4, bytes += 4)
                memcpy(bytes, from, 4);
            for (; count > 0; count--)
                *bytes++ = *from++;
            continue;
        }
        for (int column = 0; column < layer->kernel_w; column++) {
            const int in_x = left + column * layer->dilation_w;
            if (in_y >= 0 && in_y < layer->in_h && in_x >= 0 && in_x < layer->in_w) {
                const uint32_t index =
                    ((uint32_t)in_y * layer->in_w + (uint32_t)in_x) * layer->in_c + (uint32_t)first;
                for (int i = 0; i < depth; i++)
                    *bytes++ = ddq_get(x, index + (uint32_t)i, layer->in_bits);
            } else {
                for (int i = 0; i < depth; i++)
                    *bytes++ = layer->in_zero;
            }
        }
    }
}

/* Gathers the window of one output position and group into the buffer's position 0 or 1; returns the sum of its codes.
 * `bytes` holds K bytes where the channels of a group are no multiple of four. */
static inline int32_t ddq_dsp_gather(const ddq_layer *layer, const uint8_t *x, int out_y, int out_x, int group,
                                     uint32_t *words, uint8_t *bytes) {
    const int depth = layer->groups == 1 ? layer->in_c : layer->in_c / layer->groups, first = group * depth;
    const int top = out_y * layer->stride_h - layer->pad_top, left = out_x * layer->stride_w - layer->pad_left;
    const int kernel_h = layer->kernel_h, kernel_w = layer->kernel_w;
    const int inside = top >= 0 && top + (kernel_h - 1) * layer->dilation_h < layer->in_h && left >= 0 &&
                       left + (kernel_w - 1) * layer->dilation_w < layer->in_w;
    ddq_dsp_column column = {words, 0};
    if (depth & 3) {
        ddq_dsp_copy_window(layer, x, top, left, first, depth, inside, bytes);
        ddq_dsp_widen_bytes(&column, bytes, kernel_h * kernel_w * depth);
        return column.sum;
    }
    const int whole = inside && layer->groups == 1 && layer->dilation_w == 1;
    for (int row = 0; row < kernel_h; row++) {
        const int in_y = top + row * layer->dilation_h;
        uint32_t index = (uint32_t)((in_y * layer->in_w + left) * layer->in_c + first);
        if (whole) {
            ddq_dsp_widen(&column, layer, x, index, kernel_w * (depth >> 2));
            continue;
        }
        for (int place = 0; place < kernel_w; place++, index += (uint32_t)layer->dilation_w * layer->in_c) {
            const int in_x = left + place * layer->dilation_w;
            if (in_y >= 0 && in_y < layer->in_h && in_x >= 0 && in_x < layer->in_w)
                ddq_dsp_widen(&column, layer, x, index, depth >> 2);
            else
                ddq_dsp_fill(&column, layer->in_zero, depth >> 2);
        }
    }
    return column.sum;
}

#endif
