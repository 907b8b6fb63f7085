/* Depthwise convolutions on Cortex-M cores with the DSP extension.
 *
 * Four channels at a time: their weights are widened once to 16-bit lanes, pairs of words (c, c + 2), (c + 1, c + 3) for
 * every tap, and applied at all positions; inputs are widened as they are read. Windows of packed inputs whose channels
 * are no multiple of four are first copied as bytes.
 *
 * Weights of every block of four channels: for tap after tap the four codes in plain order, those of 4 and 2 bits + 8
 * and + 2, then bytes of zero until the block is as long as its four rows. The last one to three channels: plain rows.
 *
 * Accumulators: int32, exact where |bias'| + 255 * sum(|w|) < 2^31. Scratch: 8 bytes for every tap, 12 where
 * windows are copied.
 */
#include "ddq_dsp.h"
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

/* What the four channels of a block share at all positions; pitches in bytes. */
typedef struct {
    const ddq_layer *layer;
    const uint8_t *x;      /* the input's first code of the block */
    const uint32_t *words; /* widened weights */
    uint8_t *window;       /* room for a copied window, NULL where none is copied */
    uint32_t outside;      /* four codes in_zero, packed as the input */
    int position, pitch, step, row_pitch; /* from a position, tap, output, row of taps to the next */
    int columns, out_c, out_bits, in_w, out_w, dilation, stride, left;
    int first, whole; /* the outputs of a row whose windows have all columns inside, and how many they are */
    int32_t bias[4], multiplier[4];
    int shift[4], channel;
} block;

/* The rows of a window: how many lie above the image, in it, below it. */
typedef struct {
    int above, inside, below;
} window_rows;

/* Adds one tap: four codes at x with the weights at w. Constant `bits`. */
DDQ_DSP_INLINE void add_tap(int32_t *acc, const uint8_t *x, const uint32_t *w, int bits) {
    uint32_t even, odd;
    if (bits == 8) {
        const uint32_t codes = ddq_dsp_word(x);
        even = ddq_dsp_uxtb16(codes);
        odd = ddq_dsp_uxtb16_odd(codes);
    } else {
        const uint32_t codes = bits == 4 ? ddq_dsp_half(x) : *x, spread = codes | codes << (bits == 4 ? 8 : 12);
        const uint32_t mask = bits == 4 ? 0x000F000F : 0x00030003;
        even = spread & mask;
        odd = spread >> bits & mask;
    }
    acc[0] = ddq_dsp_smlabb(even, w[0], acc[0]);
    acc[1] = ddq_dsp_smlabb(odd, w[1], acc[1]);
    acc[2] = ddq_dsp_smlatt(even, w[0], acc[2]);
    acc[3] = ddq_dsp_smlatt(odd, w[1], acc[3]);
}

/* Adds `count` taps `pitch` bytes apart; returns the weights after them. */
DDQ_DSP_INLINE const uint32_t *add_taps(int32_t *acc, const uint8_t *x, const uint32_t *w, int count, int pitch,
                                        int bits) {
    if (count == 3) {
        add_tap(acc, x, w, bits);
        add_tap(acc, x + pitch, w + 2, bits);
        add_tap(acc, x + 2 * pitch, w + 4, bits);
        return w + 6;
    }
    for (; count > 0; count--, x += pitch, w += 2)
        add_tap(acc, x, w, bits);
    return w;
}

/* Copies the window of four channels as bytes, code by code. */
__attribute__((noinline)) static void copy_window(const block *part, const uint8_t *x, int top, int left) {
    const ddq_layer *layer = part->layer;
    uint8_t *window = part->window;
    for (int row = 0, in_y = top; row < layer->kernel_h; row++, in_y += layer->dilation_h)
        for (int column = 0, in_x = left; column < layer->kernel_w; column++, in_x += layer->dilation_w) {
            const int inside = in_y >= 0 && in_y < layer->in_h && in_x >= 0 && in_x < layer->in_w;
            const uint32_t index = ((uint32_t)in_y * layer->in_w + (uint32_t)in_x) * layer->in_c + (uint32_t)part->channel;
            for (uint32_t i = 0; i < 4; i++)
                *window++ = inside ? ddq_get(x, index + i, layer->in_bits) : layer->in_zero;
        }
}

/* Adds three taps of 8-bit inputs `pitch` bytes apart; returns the weights after them. */
DDQ_DSP_INLINE const uint32_t *add_three_taps(int32_t *acc, const uint8_t *x, const uint32_t *w, int pitch) {
#if DDQ_DSP_LOOPS
#define DDQ_DSP_TAP(address)                                                                                           \
    "ldr %[u], " address "\n\tldrd %[p], %[q], [%[w]], #8\n\tuxtb16 %[t], %[u]\n\tuxtb16 %[u], %[u], ror #8\n\t"         \
    "smlabb %[a], %[t], %[p], %[a]\n\tsmlabb %[b], %[u], %[q], %[b]\n\tsmlatt %[c], %[t], %[p], %[c]\n\t"                \
    "smlatt %[d], %[u], %[q], %[d]\n\t"
    uint32_t t, u, p, q;
    __asm__ volatile(DDQ_DSP_TAP("[%[x]]") DDQ_DSP_TAP("[%[x], %[pitch]]") DDQ_DSP_TAP("[%[x], %[pitch], lsl #1]")
                     : [a] "+r"(acc[0]), [b] "+r"(acc[1]), [c] "+r"(acc[2]), [d] "+r"(acc[3]), [w] "+r"(w),
                       [t] "=&r"(t), [u] "=&r"(u), [p] "=&r"(p), [q] "=&r"(q)
                     : [x] "r"(x), [pitch] "r"(pitch)
                     : "memory");
    return w;
#undef DDQ_DSP_TAP
#else
    return add_taps(acc, x, w, 3, pitch, 8);
#endif
}

DDQ_DSP_INLINE uint32_t block_codes(const block *part, const ddq_dsp_output *output, const int32_t *acc) {
    const int32_t *m = part->multiplier;
    const int *e = part->shift;
    if (output->is_double)
        return ddq_dsp_codes(output, acc[0], 0, m[0], e[0], 1, 1) | ddq_dsp_codes(output, acc[1], 0, m[1], e[1], 1, 1) << 8 |
               ddq_dsp_codes(output, acc[2], 0, m[2], e[2], 1, 1) << 16 |
               ddq_dsp_codes(output, acc[3], 0, m[3], e[3], 1, 1) << 24;
    return ddq_dsp_codes(output, acc[0], 0, m[0], e[0], 1, 0) | ddq_dsp_codes(output, acc[1], 0, m[1], e[1], 1, 0) << 8 |
           ddq_dsp_codes(output, acc[2], 0, m[2], e[2], 1, 0) << 16 |
           ddq_dsp_codes(output, acc[3], 0, m[3], e[3], 1, 0) << 24;
}

DDQ_DSP_INLINE void store_block(uint8_t *y, uint32_t index, int out_bits, uint32_t codes) {
    if (out_bits == 8) {
        ddq_dsp_put_word(y + index, codes);
    } else {
        ddq_dsp_store_packed(y, index, out_bits, codes);
        ddq_dsp_store_packed(y, index + 2, out_bits, codes >> 16);
    }
}

/* Adds `rows` rows of taps at x. Constant `bits` and `three` (columns). */
DDQ_DSP_INLINE const uint32_t *add_rows(int32_t *acc, const uint8_t *x, const uint32_t *w, int rows, int columns,
                                        int row_pitch, int pitch, int bits, int three) {
    for (; rows > 0; rows--, x += row_pitch)
        w = three && bits == 8 ? add_three_taps(acc, x, w, pitch)
                               : add_taps(acc, x, w, three ? 3 : columns, pitch, bits);
    return w;
}

/* Adds a window whose columns may leave the image; `left` is its first column, x its first tap in a row inside.
 * Constant `bits` and `three`. */
DDQ_DSP_INLINE const uint32_t *add_border(int32_t *acc, const block *part, const uint8_t *x, const uint32_t *w,
                                          int left, int rows, int bits, int three) {
    const uint8_t *const outside = (const uint8_t *)&part->outside;
    const uint32_t width = (uint32_t)part->in_w;
    const int dilation = part->dilation, pitch = part->pitch, row_pitch = part->row_pitch;
    if (three) {
        const int in0 = (uint32_t)left < width, in1 = (uint32_t)(left + dilation) < width;
        const int in2 = (uint32_t)(left + 2 * dilation) < width;
        const uint8_t *x0 = in0 ? x : outside, *x1 = in1 ? x + pitch : outside, *x2 = in2 ? x + 2 * pitch : outside;
        const int step0 = in0 ? row_pitch : 0, step1 = in1 ? row_pitch : 0, step2 = in2 ? row_pitch : 0;
        for (; rows > 0; rows--, x0 += step0, x1 += step1, x2 += step2, w += 6) {
            add_tap(acc, x0, w, bits);
            add_tap(acc, x1, w + 2, bits);
            add_tap(acc, x2, w + 4, bits);
        }
        return w;
    }
    for (; rows > 0; rows--, x += row_pitch) {
        const uint8_t *tap = x;
        for (int column = part->columns, in_x = left; column > 0; column--, in_x += dilation, tap += pitch, w += 2)
            add_tap(acc, (uint32_t)in_x < width ? tap : outside, w, bits);
    }
    return w;
}

/* One row of outputs; x is the first tap inside of the first window. Constant `bits` and `three`. */
DDQ_DSP_INLINE void run_row(const block *part, const ddq_dsp_output *output, const uint8_t *x, uint8_t *y,
                            uint32_t index, window_rows rows, int bits, int three) {
    const uint8_t *const outside = (const uint8_t *)&part->outside;
    for (int out_x = 0; out_x < part->out_w; out_x++, x += part->step, index += (uint32_t)part->out_c) {
        int32_t acc[4] = {part->bias[0], part->bias[1], part->bias[2], part->bias[3]};
        const uint32_t *w = part->words;
        if (rows.above)
            w = add_rows(acc, outside, w, rows.above, part->columns, 0, 0, bits, three);
        if ((uint32_t)(out_x - part->first) < (uint32_t)part->whole)
            w = add_rows(acc, x, w, rows.inside, part->columns, part->row_pitch, part->pitch, bits, three);
        else
            w = add_border(acc, part, x, w, part->left + out_x * part->stride, rows.inside, bits, three);
        if (rows.below)
            add_rows(acc, outside, w, rows.below, part->columns, 0, 0, bits, three);
        store_block(y, index, part->out_bits, ddq_dsp_clamped(output, block_codes(part, output, acc)));
    }
}

#define DDQ_DSP_ROW(name, bits, three)                                                                                 \
    __attribute__((noinline)) static void name(const block *part, const ddq_dsp_output *output, const uint8_t *x,      \
                                               uint8_t *y, uint32_t index, window_rows rows) {                         \
        run_row(part, output, x, y, index, rows, bits, three);                                                         \
    }
DDQ_DSP_ROW(row_8_three, 8, 1)
DDQ_DSP_ROW(row_8, 8, 0)
DDQ_DSP_ROW(row_4, 4, 0)
DDQ_DSP_ROW(row_2, 2, 0)

/* One position whose window is copied. */
static void run_copied(const block *part, const ddq_dsp_output *output, const uint8_t *input, uint8_t *y,
                       uint32_t index, int top, int left) {
    int32_t acc[4] = {part->bias[0], part->bias[1], part->bias[2], part->bias[3]};
    copy_window(part, input, top, left);
    add_taps(acc, part->window, part->words, part->layer->kernel_h * part->layer->kernel_w, 4, 8);
    store_block(y, index, part->out_bits, ddq_dsp_clamped(output, block_codes(part, output, acc)));
}

static window_rows rows_at(const ddq_layer *layer, int top) {
    const int count = layer->kernel_h, dilation = layer->dilation_h;
    window_rows rows = {0, count, 0};
    if (top < 0) {
        const int above = (dilation - 1 - top) / dilation;
        rows.above = above < count ? above : count;
    }
    const int left = layer->in_h - 1 - top, end = left < 0 ? 0 : left / dilation + 1;
    rows.below = end < count ? count - end : 0;
    rows.inside = count - rows.above - rows.below;
    return rows;
}

/* Four channels at all positions. */
static void run_block(const block *part, const ddq_dsp_output *output, const uint8_t *input, uint8_t *y) {
    const ddq_layer *layer = part->layer;
    const int bits = layer->in_bits;
    uint32_t index = (uint32_t)part->channel;
    for (int out_y = layer->out_h, top = -layer->pad_top; out_y > 0; out_y--, top += layer->stride_h) {
        const window_rows rows = rows_at(layer, top);
        const int in_y = top + rows.above * layer->dilation_h;
        const uint8_t *const x = part->x + (in_y * layer->in_w + part->left) * part->position;
        if (part->window)
            for (int out_x = 0; out_x < part->out_w; out_x++)
                run_copied(part, output, input, y, index + (uint32_t)(out_x * part->out_c), top,
                           part->left + out_x * part->stride);
        else if (bits == 8 && part->columns == 3)
            row_8_three(part, output, x, y, index, rows);
        else if (bits == 8)
            row_8(part, output, x, y, index, rows);
        else if (bits == 4)
            row_4(part, output, x, y, index, rows);
        else
            row_2(part, output, x, y, index, rows);
        index += (uint32_t)(part->out_w * part->out_c);
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
    const int taps = layer->kernel_h * layer->kernel_w, bits = layer->in_bits;
    const uint32_t row_bytes = (uint32_t)(taps * layer->w_bits + 7) / 8;
    uint32_t *const words = (uint32_t *)(void *)scratch;
    const ddq_dsp_output output = ddq_dsp_output_of(layer, taps);
    const uint8_t *w = layer->weights;
    block part = {.layer = layer, .words = words, .columns = layer->kernel_w, .out_c = layer->out_c};
    part.out_bits = layer->out_bits, part.in_w = layer->in_w, part.dilation = layer->dilation_w;
    part.out_w = layer->out_w, part.stride = layer->stride_w, part.left = -layer->pad_left;
    part.position = layer->in_c * bits / 8;
    part.pitch = part.position * layer->dilation_w, part.step = part.position * layer->stride_w;
    part.row_pitch = part.position * layer->in_w * layer->dilation_h;
    part.window = bits < 8 && layer->in_c & 3 ? scratch + 8 * taps : NULL;
    part.outside = (bits == 8 ? 0x01010101u : bits == 4 ? 0x11111111u : 0x55555555u) * layer->in_zero;
    const int last = layer->in_w - 1 - (part.columns - 1) * part.dilation + layer->pad_left;
    const int end = last < 0 ? 0 : last / part.stride + 1;
    part.first = (layer->pad_left + part.stride - 1) / part.stride;
    part.whole = (end < part.out_w ? end : part.out_w) - part.first;
    part.whole = part.whole < 0 ? 0 : part.whole;
    for (; part.channel + 3 < layer->out_c; part.channel += 4, w += 4 * row_bytes) {
        part.x = x + (uint32_t)part.channel * (uint32_t)bits / 8;
        for (int i = 0; i < 4; i++) {
            part.bias[i] = layer->bias[part.channel + i];
            part.multiplier[i] = layer->multiplier[part.channel + i];
            part.shift[i] = output.shift - layer->shift[part.channel + i];
        }
        widen_block(w, taps, layer->w_bits, words);
        run_block(&part, &output, x, y);
    }
    for (; part.channel < layer->out_c; part.channel++, w += row_bytes)
        channel_alone(layer, x, y, part.channel, w);
}
