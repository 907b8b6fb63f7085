/* Depthwise convolutions on Cortex-M cores with the DSP extension.
 *
 * Four channels at a time: their weights are widened once to 16-bit lanes, pairs of words (c, c + 2), (c + 1, c + 3) for
 * every tap, and applied at all positions; inputs are widened as they are read. Windows that leave the image, and packed
 * inputs whose channels are no multiple of four, are first copied as bytes.
 *
 * Weights of every block of four channels: for tap after tap the four codes in plain order, those of 4 and 2 bits + 8
 * and + 2, then bytes of zero until the block is as long as its four rows. The last one to three channels: plain rows.
 *
 * Accumulators: int32, exact where |bias'| + 255 * sum(|w|) < 2^31. Scratch: 12 bytes for every tap.
 */
#include "ddq_dsp.h"
#include "ddq_dsp_columns.h"
#include "ddq_dsp_store.h"

ddq_kernel ddq_dsp_depthwise;

/* Widens the weights of a block of four channels. */
static void widen_block(const uint8_t *w, int taps, int bits, uint32_t *words) {
    if (bits == 8) {
        for (; taps > 0; taps--, w += 4, words += 2) {
            const uint32_t codes = ddq_dsp_word(w);
            words[0] = ddq_dsp_sxtb16(codes);
            words[1] = ddq_dsp_sxtb16_odd(codes);
        }
    } else if (bits == 4) {
        for (; taps > 0; taps--, w += 2, words += 2) {
            const uint32_t codes = ddq_dsp_half(w), spread = codes | codes << 8;
            words[0] = ddq_dsp_ssub16(spread & 0x000F000F, 0x00080008);
            words[1] = ddq_dsp_ssub16(spread >> 4 & 0x000F000F, 0x00080008);
        }
    } else {
        for (; taps > 0; taps--, w++, words += 2) {
            const uint32_t spread = *w | (uint32_t)*w << 12;
            words[0] = ddq_dsp_ssub16(spread & 0x00030003, 0x00020002);
            words[1] = ddq_dsp_ssub16(spread >> 2 & 0x00030003, 0x00020002);
        }
    }
}

/* Four codes at x as a word of bytes. */
DDQ_DSP_INLINE void load_quad(const uint8_t *x, int bits, uint32_t *even, uint32_t *odd) {
    if (bits == 8) {
        const uint32_t codes = ddq_dsp_word(x);
        *even = ddq_dsp_uxtb16(codes);
        *odd = ddq_dsp_uxtb16_odd(codes);
    } else {
        const uint32_t codes = bits == 4 ? ddq_dsp_half(x) : *x, spread = codes | codes << (bits == 4 ? 8 : 12);
        const uint32_t mask = bits == 4 ? 0x000F000F : 0x00030003;
        *even = spread & mask;
        *odd = spread >> bits & mask;
    }
}

/* Adds `rows` x `columns` taps, `pitch` and `row_pitch` bytes apart. Constant `bits`. */
DDQ_DSP_INLINE void add_taps(int32_t *acc, const uint8_t *x, const uint32_t *w, int rows, int columns,
                             uint32_t row_pitch, uint32_t pitch, int bits) {
    int32_t first = acc[0], second = acc[1], third = acc[2], fourth = acc[3];
    for (; rows > 0; rows--, x += row_pitch) {
        const uint8_t *tap = x;
        for (int count = columns; count > 0; count--, tap += pitch, w += 2) {
            uint32_t even, odd;
            load_quad(tap, bits, &even, &odd);
            first = ddq_dsp_smlabb(even, w[0], first);
            second = ddq_dsp_smlabb(odd, w[1], second);
            third = ddq_dsp_smlatt(even, w[0], third);
            fourth = ddq_dsp_smlatt(odd, w[1], fourth);
        }
    }
    acc[0] = first, acc[1] = second, acc[2] = third, acc[3] = fourth;
}

/* Copies the window of four channels as bytes, tap after tap. */
static void copy_window(const ddq_layer *layer, const uint8_t *x, int top, int left, int channel, uint8_t *window) {
    const int whole = layer->in_bits == 8 || (layer->in_c & 3) == 0;
    for (int row = 0; row < layer->kernel_h; row++) {
        const int in_y = top + row * layer->dilation_h;
        for (int column = 0; column < layer->kernel_w; column++, window += 4) {
            const int in_x = left + column * layer->dilation_w;
            if (in_y < 0 || in_y >= layer->in_h || in_x < 0 || in_x >= layer->in_w) {
                memset(window, layer->in_zero, 4);
                continue;
            }
            const uint32_t index = ((uint32_t)in_y * layer->in_w + (uint32_t)in_x) * layer->in_c + (uint32_t)channel;
            if (whole && layer->in_bits == 8)
                memcpy(window, x + index, 4);
            else
                for (uint32_t i = 0; i < 4; i++)
                    window[i] = ddq_get(x, index + i, layer->in_bits);
        }
    }
}

DDQ_DSP_INLINE void block(const ddq_layer *layer, const ddq_dsp_clamp *clamp, const uint8_t *x, uint8_t *y, int channel,
                          const uint32_t *words, uint8_t *window, int bits) {
    const int rows = layer->kernel_h, columns = layer->kernel_w;
    const int reach_h = (rows - 1) * layer->dilation_h, reach_w = (columns - 1) * layer->dilation_w;
    const uint32_t position_bytes = (uint32_t)layer->in_c * (uint32_t)bits / 8;
    const uint32_t pitch = position_bytes * layer->dilation_w, row_pitch = position_bytes * layer->in_w * layer->dilation_h;
    const int direct = bits == 8 || (layer->in_c & 3) == 0;
    uint32_t index = (uint32_t)channel;
    x += (uint32_t)channel * (uint32_t)bits / 8;
    for (int out_y = 0, top = -layer->pad_top; out_y < layer->out_h; out_y++, top += layer->stride_h) {
        const int inside = direct && top >= 0 && top + reach_h < layer->in_h;
        for (int out_x = 0, left = -layer->pad_left; out_x < layer->out_w; out_x++, left += layer->stride_w) {
            int32_t acc[4] = {layer->bias[channel], layer->bias[channel + 1], layer->bias[channel + 2],
                              layer->bias[channel + 3]};
            if (inside && left >= 0 && left + reach_w < layer->in_w) {
                add_taps(acc, x + (uint32_t)(top * layer->in_w + left) * position_bytes, words, rows, columns,
                         row_pitch, pitch, bits);
            } else {
                copy_window(layer, x - (uint32_t)channel * (uint32_t)bits / 8, top, left, channel, window);
                add_taps(acc, window, words, 1, rows * columns, 0, 4, 8);
            }
            uint32_t codes[4];
            for (int i = 0; i < 4; i++)
                ddq_dsp_codes(layer, clamp, acc + i, channel + i, 1, codes + i);
            ddq_dsp_store_four(layer, clamp, y, index, codes[0] | codes[1] << 8 | codes[2] << 16 | codes[3] << 24);
            index += layer->out_c;
        }
    }
}

/* One channel, tap by tap; w are its plain codes. */
static void channel_alone(const ddq_layer *layer, const uint8_t *x, uint8_t *y, int channel, const uint8_t *w) {
    const int bias = layer->w_bits == 8 ? 0 : 1 << (layer->w_bits - 1);
    uint32_t index = (uint32_t)channel;
    for (int out_y = 0; out_y < layer->out_h; out_y++)
        for (int out_x = 0; out_x < layer->out_w; out_x++, index += layer->out_c) {
            int32_t acc = layer->bias[channel];
            uint32_t tap = 0;
            for (int row = 0; row < layer->kernel_h; row++)
                for (int column = 0; column < layer->kernel_w; column++, tap++) {
                    const int in_y = out_y * layer->stride_h - layer->pad_top + row * layer->dilation_h;
                    const int in_x = out_x * layer->stride_w - layer->pad_left + column * layer->dilation_w;
                    const int inside = in_y >= 0 && in_y < layer->in_h && in_x >= 0 && in_x < layer->in_w;
                    const uint32_t place = ((uint32_t)in_y * layer->in_w + (uint32_t)in_x) * layer->in_c;
                    const int code = inside ? ddq_get(x, place + (uint32_t)channel, layer->in_bits) : layer->in_zero;
                    const int stored = ddq_get(w, tap, layer->w_bits);
                    acc += code * (bias ? stored - bias : stored - ((stored & 128) << 1));
                }
            ddq_put(y, index, layer->out_bits, ddq_code(layer, acc, channel));
        }
}

void ddq_dsp_depthwise(const ddq_layer *layer, const uint8_t *x, uint8_t *y, uint8_t *scratch) {
    const int taps = layer->kernel_h * layer->kernel_w;
    const uint32_t row_bytes = (uint32_t)(taps * layer->w_bits + 7) / 8;
    uint32_t *const words = (uint32_t *)(void *)scratch;
    uint8_t *const window = scratch + 8 * taps;
    const ddq_dsp_clamp clamp = ddq_dsp_clamp_of(layer);
    const uint8_t *w = layer->weights;
    int channel = 0;
    for (; channel + 3 < layer->out_c; channel += 4, w += 4 * row_bytes) {
        widen_block(w, taps, layer->w_bits, words);
        if (layer->in_bits == 8)
            block(layer, &clamp, x, y, channel, words, window, 8);
        else if (layer->in_bits == 4)
            block(layer, &clamp, x, y, channel, words, window, 4);
        else
            block(layer, &clamp, x, y, channel, words, window, 2);
    }
    for (; channel < layer->out_c; channel++, w += row_bytes)
        channel_alone(layer, x, y, channel, w);
}
