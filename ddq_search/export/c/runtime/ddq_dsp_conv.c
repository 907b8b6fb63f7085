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

/* All output channels of one group at one or two positions; `index` is the code of the group's first channel at the first
 * position. Constant `bits` and `positions`. */
DDQ_DSP_INLINE void channels(const ddq_layer *layer, const ddq_dsp_clamp *clamp, const uint32_t *columns,
                             const int32_t *sums, int group, uint8_t *y, uint32_t index, int bits, int positions) {
    const int length = layer->kernel_h * layer->kernel_w * (layer->in_c / layer->groups);
    const int count = layer->out_c / layer->groups;
    const uint8_t *w = layer->weights + (uint32_t)(group * count) * ((uint32_t)(length * bits + 7) / 8);
    const int32_t first = bits == 8 ? 0 : -(sums[0] << (bits - 1)), second = bits == 8 ? 0 : -(sums[1] << (bits - 1));
    int channel = group * count;
    const int end = channel + count;
    for (; channel + 1 < end; channel += 2, index += 2) {
        int32_t acc[4];
        acc[0] = layer->bias[channel] + first, acc[1] = layer->bias[channel] + second;
        acc[2] = layer->bias[channel + 1] + first, acc[3] = layer->bias[channel + 1] + second;
        w = ddq_dsp_dot_pair(w, columns, length, acc, bits, positions);
        uint32_t codes[2];
        ddq_dsp_codes(layer, clamp, acc, channel, positions, &codes[0]);
        ddq_dsp_codes(layer, clamp, acc + 2, channel + 1, positions, &codes[1]);
        ddq_dsp_store(layer, clamp, y, index, codes[0] | codes[1] << 8, positions);
    }
    if (channel < end) {
        int32_t acc[2] = {layer->bias[channel] + first, layer->bias[channel] + second};
        ddq_dsp_dot_single(w, columns, length, acc, bits, positions);
        for (int position = 0; position < positions; position++)
            ddq_put(y, index + (uint32_t)position * layer->out_c, layer->out_bits,
                    ddq_code(layer, acc[position], channel));
    }
}

DDQ_DSP_INLINE void convolve(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch, int bits) {
    const int length = layer->kernel_h * layer->kernel_w * (layer->in_c / layer->groups), width = layer->out_w;
    const int group_channels = layer->out_c / layer->groups;
    uint32_t *const columns = (uint32_t *)(void *)scratch;
    uint8_t *const bytes = scratch + ((length + 3) / 4) * DDQ_DSP_PITCH * 4;
    const ddq_dsp_clamp clamp = ddq_dsp_clamp_of(layer);
    uint32_t index = 0;
    int out_y = 0, out_x = 0;
    for (int left = layer->out_h * width; left > 0; left -= 2) {
        const int next_x = out_x + 1 == width ? 0 : out_x + 1, next_y = next_x ? out_y : out_y + 1;
        for (int group = 0; group < layer->groups; group++, index += (uint32_t)group_channels) {
            int32_t sums[2];
            sums[0] = ddq_dsp_gather(layer, x, out_y, out_x, group, columns, bytes);
            if (left > 1) {
                sums[1] = ddq_dsp_gather(layer, x, next_y, next_x, group, columns + 2, bytes);
                channels(layer, &clamp, columns, sums, group, y, index, bits, 2);
            } else {
                sums[1] = 0;
                channels(layer, &clamp, columns, sums, group, y, index, bits, 1);
            }
        }
        index += layer->out_c;
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
