/* From accumulators to stored codes on Cortex-M cores with the DSP extension.
 *
 * Multipliers below one half (below one with two roundings), which is nearly every layer, take the short way: with h the
 * high product and e >= 0 the right shift less one, the code is (((h >> e) + 1) >> 1) + out_zero, computed as
 * ((h >> e) + 1 + 2 * out_zero) >> 1 so that USAT shifts and clamps to 0 ... 255 at once. With two roundings it
 * doubles accumulators, which stay below 2^30 where biases stay below 2^29 and K below 16,000. Others take
 * the long way, in 64 bits. The
 * layer's own clamp acts on four codes at once.
 */
#ifndef DDQ_DSP_STORE_H
#define DDQ_DSP_STORE_H

#include "ddq_dsp.h"

/* What every requantization of a layer needs: four equal bytes each of 255 - high, 255 - high + low and low;
 * 1 + 2 * out_zero; e + the channel's shift. */
typedef struct {
    uint32_t above, gap, low;
    int32_t round, shift;
    int is_double;
} ddq_dsp_output;

enum {
    DDQ_DSP_LONG = -0x40000000, /* a `shift` with which no channel takes the short way */
    DDQ_DSP_MOST_PRODUCTS = 16000 /* 255 * 127 * this < 2^29 */
};

static inline ddq_dsp_output ddq_dsp_output_of(const ddq_layer *layer, int length) {
    const uint32_t four = 0x01010101, above = 255u - layer->high;
    const int is_double = layer->rounding == DDQ_DOUBLE;
    ddq_dsp_output output = {
        four * above, four * (above + layer->low), four * layer->low, 1 + 2 * layer->out_zero, is_double ? -1 : -2,
        is_double,
    };
    if (is_double) {
        int32_t magnitudes = 0;
        for (int channel = 0; channel < layer->out_c; channel++)
            magnitudes |= layer->bias[channel] < 0 ? ~layer->bias[channel] : layer->bias[channel];
        if (magnitudes >> 29 || length > DDQ_DSP_MOST_PRODUCTS)
            output.shift = DDQ_DSP_LONG;
    }
    return output;
}

/* min(max(code, low), high) in each byte. */
DDQ_DSP_INLINE uint32_t ddq_dsp_clamped(const ddq_dsp_output *output, uint32_t codes) {
    return ddq_dsp_uqadd8(ddq_dsp_uqsub8(ddq_dsp_uqadd8(codes, output->above), output->gap), output->low);
}

/* Whether channels of these right shifts less one all take the short way. */
DDQ_DSP_INLINE int ddq_dsp_short(int shifts) { return (uint32_t)shifts < 32; }

/* A code between 0 and 255 from an accumulator, the short way; `shift` is e. */
DDQ_DSP_INLINE uint32_t ddq_dsp_code_double(const ddq_dsp_output *output, int32_t acc, int32_t multiplier, int shift) {
    const int32_t high = ddq_dsp_smmulr(2 * acc, multiplier);
    /* Less one where negative: ties of the shift go away from zero. */
    return ddq_dsp_half_clamped(ddq_dsp_qadd(ddq_dsp_asr(high + ddq_dsp_asr(high, 31), shift), output->round));
}

DDQ_DSP_INLINE uint32_t ddq_dsp_code_single(const ddq_dsp_output *output, int32_t acc, int32_t multiplier, int shift) {
    return ddq_dsp_half_clamped(ddq_dsp_qadd(ddq_dsp_asr(ddq_dsp_smmul(acc, multiplier), shift), output->round));
}

/* A code between 0 and 255 from any accumulator by any multiplier that leaves it below 2^30. */
DDQ_DSP_INLINE uint32_t ddq_dsp_code_long(const ddq_dsp_output *output, int32_t acc, int32_t multiplier, int shift) {
    int32_t twice;
    if (!output->is_double) {
        twice = 2 * ddq_requantize_single(acc, multiplier, shift);
    } else if (shift < 0) {
        twice = 2 * ddq_requantize_double(acc, multiplier, shift);
    } else {
        int32_t raised = (int32_t)((uint32_t)acc << shift);
        if (ddq_dsp_asr(raised, shift) != acc)
            raised = acc < 0 ? INT32_MIN : INT32_MAX;
        const int64_t sum = (int64_t)raised * multiplier + ((int64_t)1 << 30);
        twice = (int32_t)((uint64_t)sum >> 31) * 2;
    }
    return ddq_dsp_half_clamped(ddq_dsp_qadd(twice, output->round));
}

/* Codes of two channels at `positions`, acc[2 * channel + position], the long way; byte 2 * position + channel. */
__attribute__((noinline)) static uint32_t ddq_dsp_codes_long(const ddq_dsp_output *output, const int32_t *multiplier,
                                                             const int8_t *shift, const int32_t *acc, int positions) {
    uint32_t codes = 0;
    for (int i = 0; i < 2; i++) {
        codes |= ddq_dsp_code_long(output, acc[2 * i], multiplier[i], shift[i]) << 8 * i;
        if (positions == 2)
            codes |= ddq_dsp_code_long(output, acc[2 * i + 1], multiplier[i], shift[i]) << (8 * i + 16);
    }
    return codes;
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

#endif
