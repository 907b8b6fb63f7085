/* From accumulators to stored codes on Cortex-M cores with the DSP extension.
 *
 * Multipliers below one half (below one with two roundings), which is nearly every layer, take the short way: with h the
 * high product and e >= 0 the right shift less one, the code is (((h >> e) + 1) >> 1) + out_zero, computed as
 * ((h >> e) + 1 + 2 * out_zero) >> 1 so that USAT shifts and clamps to 0 ... 255 at once. Others call ddq_code. The
 * layer's own clamp acts on four codes at once.
 */
#ifndef DDQ_DSP_STORE_H
#define DDQ_DSP_STORE_H

#include "ddq_dsp.h"

/* Four equal bytes each: 255 - high; 255 - high + low; low. `round`: 1 + 2 * out_zero. */
typedef struct {
    uint32_t above, gap, low;
    int32_t round;
} ddq_dsp_clamp;

DDQ_DSP_INLINE ddq_dsp_clamp ddq_dsp_clamp_of(const ddq_layer *layer) {
    const uint32_t four = 0x01010101, above = 255u - layer->high;
    const ddq_dsp_clamp clamp = {four * above, four * (above + layer->low), four * layer->low, 1 + 2 * layer->out_zero};
    return clamp;
}

/* min(max(code, low), high) in each byte. */
DDQ_DSP_INLINE uint32_t ddq_dsp_clamped(const ddq_dsp_clamp *clamp, uint32_t codes) {
    return ddq_dsp_uqadd8(ddq_dsp_uqsub8(ddq_dsp_uqadd8(codes, clamp->above), clamp->gap), clamp->low);
}

/* The high product of a double rounding without a left shift, its sign added so that ties go away from zero. */
DDQ_DSP_INLINE int32_t ddq_dsp_high_double(int32_t acc, int32_t multiplier) {
    const int64_t sum = (int64_t)acc * multiplier + ((int64_t)1 << 30);
    const int32_t high = (int32_t)((uint32_t)((uint64_t)sum >> 32) << 1 | (uint32_t)sum >> 31);
    return high - (high < 0);
}

DDQ_DSP_INLINE uint32_t ddq_dsp_code(int32_t high, int shift, const ddq_dsp_clamp *clamp) {
    return ddq_dsp_half_clamped(ddq_dsp_qadd(ddq_dsp_asr(high, shift), clamp->round));
}

__attribute__((noinline)) static uint32_t ddq_dsp_code_any(const ddq_layer *layer, int32_t acc, int channel) {
    return ddq_code(layer, acc, channel);
}

/* Codes of one channel at one or two positions, in the bytes 0 and 2, before the layer's clamp. */
DDQ_DSP_INLINE void ddq_dsp_codes(const ddq_layer *layer, const ddq_dsp_clamp *clamp, const int32_t *acc, int channel,
                                 int positions, uint32_t *codes) {
    const int32_t multiplier = layer->multiplier[channel];
    const int is_double = layer->rounding == DDQ_DOUBLE;
    const int shift = (is_double ? -1 : -2) - layer->shift[channel];
    uint32_t second = 0;
    if (shift < 0 || shift > 30) {
        *codes = ddq_dsp_code_any(layer, acc[0], channel);
        if (positions == 2)
            second = ddq_dsp_code_any(layer, acc[1], channel);
    } else if (is_double) {
        *codes = ddq_dsp_code(ddq_dsp_high_double(acc[0], multiplier), shift, clamp);
        if (positions == 2)
            second = ddq_dsp_code(ddq_dsp_high_double(acc[1], multiplier), shift, clamp);
    } else {
        *codes = ddq_dsp_code(ddq_dsp_smmul(acc[0], multiplier), shift, clamp);
        if (positions == 2)
            second = ddq_dsp_code(ddq_dsp_smmul(acc[1], multiplier), shift, clamp);
    }
    *codes |= second << 16;
}

/* Two codes of 2 or 4 bits at `index`; the others in their bytes keep their values. */
__attribute__((noinline)) static void ddq_dsp_store_packed(uint8_t *y, uint32_t index, int bits, uint32_t codes) {
    const uint32_t pair = (codes & 0xFF) | (codes >> 8 & 0xFF) << bits;
    if (index & 1) {
        ddq_put(y, index, bits, (uint8_t)codes);
        ddq_put(y, index + 1, bits, (uint8_t)(codes >> 8));
    } else if (bits == 4) {
        y[index >> 1] = (uint8_t)pair;
    } else {
        uint8_t *const byte = y + (index >> 2);
        *byte = (uint8_t)(index & 2 ? (*byte & 0x0F) | pair << 4 : (*byte & 0xF0u) | pair);
    }
}

/* Clamps and stores the codes of two channels: bytes 0 and 1 at `index`, bytes 2 and 3 one position further. */
DDQ_DSP_INLINE void ddq_dsp_store(const ddq_layer *layer, const ddq_dsp_clamp *clamp, uint8_t *y, uint32_t index,
                                 uint32_t codes, int positions) {
    codes = ddq_dsp_clamped(clamp, codes);
    if (layer->out_bits == 8) {
        y[index] = (uint8_t)codes, y[index + 1] = (uint8_t)(codes >> 8);
        if (positions == 2) {
            y += layer->out_c;
            y[index] = (uint8_t)(codes >> 16), y[index + 1] = (uint8_t)(codes >> 24);
        }
    } else {
        ddq_dsp_store_packed(y, index, layer->out_bits, codes);
        if (positions == 2)
            ddq_dsp_store_packed(y, index + layer->out_c, layer->out_bits, codes >> 16);
    }
}

/* Clamps and stores the codes of four channels, bytes 0 to 3. */
DDQ_DSP_INLINE void ddq_dsp_store_four(const ddq_layer *layer, const ddq_dsp_clamp *clamp, uint8_t *y, uint32_t index,
                                       uint32_t codes) {
    codes = ddq_dsp_clamped(clamp, codes);
    if (layer->out_bits == 8) {
        y += index;
        y[0] = (uint8_t)codes, y[1] = (uint8_t)(codes >> 8);
        y[2] = (uint8_t)(codes >> 16), y[3] = (uint8_t)(codes >> 24);
    } else {
        ddq_dsp_store_packed(y, index, layer->out_bits, codes);
        ddq_dsp_store_packed(y, index + 2, layer->out_bits, codes >> 16);
    }
}

#endif
