/* Convolutions, pointwise, grouped and linear layers on Cortex-M cores with the DSP extension.
 *
 * Two positions at a time: their windows are widened to 16-bit lanes once (ddq_dsp_columns.h), then every pair of output
 * channels is multiplied with both (ddq_dsp_dot.h). Weights of 8, 4 and 2 bits, inputs and outputs of 8, 4 and 2.
 *
 * Accumulators: int32, modulo 2^32 on the way (codes of 4 and 2 bits are biased by 8 and 2, corrected beforehand), exact
 * where |bias'| + 255 * sum(|w|) < 2^31. Scratch: two columns of int16, K rounded up to four; K bytes more where the
 * channels of a group are no multiple of four.
 */
#include "ddq_dsp.h"
#include "ddq_dsp_columns.h"
#include "ddq_dsp_dot.h"
#include "ddq_dsp_store.h"

ddq_kernel ddq_dsp_conv_w8;
ddq_kernel ddq_dsp_conv_w4;
ddq_kernel ddq_dsp_conv_w2;

/* Stores the clamped codes of two channels: bytes 0 and 1 at `index`, bytes 2 and 3 one position further. */
DDQ_DSP_INLINE void store_pair(uint8_t *y, uint32_t index, uint32_t out_c, int out_bits, uint32_t codes, int positions) {
    if (out_bits == 8) {
        ddq_dsp_put_half(y + index, codes);
        if (positions == 2)
            ddq_dsp_put_half(y + index + out_c, codes >> 16);
    } else {
        ddq_dsp_store_packed(y, index, out_bits, codes);
        if (positions == 2)
            ddq_dsp_store_packed(y, index + out_c, out_bits, codes >> 16);
    }
}

/* All output channels of one group at one or two positions; `index` is the code of the group's first channel at the first
 * position. Constant `bits` and `positions`. */
DDQ_DSP_INLINE void channels(const ddq_layer *layer, const ddq_dsp_output *output, const uint32_t *columns, int length,
                             int32_t first, int32_t second, int channel, int count, uint8_t *y, uint32_t index,
                             int bits, int positions) {
    const uint8_t *w = layer->weights + (uint32_t)channel * ((uint32_t)(length * bits + 7) / 8);
    const int32_t *bias = layer->bias + channel, *multiplier = layer->multiplier + channel;
    const int8_t *shift = layer->shift + channel;
    const int out_bits = layer->out_bits;
    const uint32_t out_c = layer->out_c;
    for (; count > 1; count -= 2, bias += 2, multiplier += 2, shift += 2, index += 2) {
        int32_t acc[4] = {ddq_dsp_add(bias[0], first), ddq_dsp_add(bias[0], second), ddq_dsp_add(bias[1], first),
                          ddq_dsp_add(bias[1], second)};
        w = ddq_dsp_dot_pair(w, columns, length, acc, bits, positions);
        const int32_t m0 = multiplier[0], m1 = multiplier[1];
        const int e0 = output->shift - shift[0], e1 = output->shift - shift[1];
        uint32_t codes;
        if (output->is_double)
            codes = ddq_dsp_codes(output, acc[0], acc[1], m0, e0, positions, 1) |
                    ddq_dsp_codes(output, acc[2], acc[3], m1, e1, positions, 1) << 8;
        else
            codes = ddq_dsp_codes(output, acc[0], acc[1], m0, e0, positions, 0) |
                    ddq_dsp_codes(output, acc[2], acc[3], m1, e1, positions, 0) << 8;
        store_pair(y, index, out_c, out_bits, ddq_dsp_clamped(output, codes), positions);
    }
    if (count) {
        int32_t acc[2] = {ddq_dsp_add(bias[0], first), ddq_dsp_add(bias[0], second)};
        ddq_dsp_dot_single(w, columns, length, acc, bits, positions);
        for (int position = 0; position < positions; position++, index += out_c)
            ddq_put(y, index, out_bits, ddq_code(layer, acc[position], (int)(bias - layer->bias)));
    }
}

/* The column of one position in the buffer's position 0 or 1; returns the sum of its codes. */
static inline int32_t column_at(const ddq_layer *layer, const uint8_t *x, int out_y, int out_x, int group, int plain,
                                uint32_t *words, uint8_t *bytes) {
    if (!plain)
        return ddq_dsp_gather(layer, x, out_y, out_x, group, words, bytes);
    const uint32_t position = (uint32_t)(out_y * layer->stride_h) * layer->in_w + (uint32_t)(out_x * layer->stride_w);
    return ddq_dsp_widen_pixel(x + position * layer->in_c, layer->in_c, words);
}

DDQ_DSP_INLINE void convolve(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch, int bits) {
    const int depth = layer->in_c / layer->groups, group_channels = layer->out_c / layer->groups;
    const int length = layer->kernel_h * layer->kernel_w * depth, width = layer->out_w;
    const int inside = layer->pad_top + layer->pad_left == 0 && (layer->out_h - 1) * layer->stride_h < layer->in_h &&
                       (layer->out_w - 1) * layer->stride_w < layer->in_w;
    const int plain = layer->groups == 1 && length == layer->in_c && layer->in_bits == 8 && inside;
    uint32_t *const columns = (uint32_t *)(void *)scratch;
    uint8_t *const bytes = scratch + ((length + 3) / 4) * DDQ_DSP_PITCH * 4;
    const ddq_dsp_output output = ddq_dsp_output_of(layer, length);
    uint32_t index = 0;
    int out_y = 0, out_x = 0;
    for (int left = layer->out_h * width; left > 0; left -= 2) {
        const int next_x = out_x + 1 == width ? 0 : out_x + 1, next_y = next_x ? out_y : out_y + 1;
        for (int group = 0, channel = 0; group < layer->groups; group++, channel += group_channels) {
            /* What biased codes add: the sum of a column times 8 or 2. */
            int32_t first = column_at(layer, x, out_y, out_x, group, plain, columns, bytes);
            first = bits == 8 ? 0 : -(first << (bits - 1));
            if (left > 1) {
                int32_t second = column_at(layer, x, next_y, next_x, group, plain, columns + 2, bytes);
                second = bits == 8 ? 0 : -(second << (bits - 1));
                channels(layer, &output, columns, length, first, second, channel, group_channels, y,
                         index + (uint32_t)channel, bits, 2);
            } else {
                channels(layer, &output, columns, length, first, 0, channel, group_channels, y,
                         index + (uint32_t)channel, bits, 1);
            }
        }
        index += 2u * layer->out_c;
        out_x = next_x + 1 == width ? 0 : next_x + 1;
        out_y = out_x ? next_y : next_y + 1;
    }
}

void ddq_dsp_conv_w8(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    convolve(layer, x, y, scratch, 8);
}

void ddq_dsp_conv_w4(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    convolve(layer, x, y, scratch, 4);
}

void ddq_dsp_conv_w2(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    convolve(layer, x, y, scratch, 2);
}
