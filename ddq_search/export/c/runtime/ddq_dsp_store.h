/* From accumulators to stored codes on Cortex-M cores with the DSP extension.
 *
 * Multipliers below one half (one quarter with one rounding) take the short way: with h the high product and e >= 0 the
 * right shift less one, the code is (((h >> e) + 1) >> 1) + out_zero, computed as ((h >> e) + 1 + 2 * out_zero) >> 1 so
 * that USAT shifts and clamps to 0 ... 255 at once. With two roundings it doubles accumulators, which stay below 2^30
 * where biases stay below 2^29 and K is at most 16,000. Multipliers up to 2^10 shift the accumulator left beforehand,
 * where both roundings agree; others call ddq_requantize. The layer's own clamp acts on four codes at once.
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

/* A code between 0 and 255 from an accumulator, the short way; `shift` is e. */
DDQ_DSP_INLINE uint32_t ddq_dsp_code_double(const ddq_dsp_output *output, int32_t acc, int32_t multiplier, int shift) {
    const int32_t high = ddq_dsp_smmulr(2 * acc, multiplier);
    /* Less one where negative: ties of the shift go away from zero. */
    return ddq_dsp_half_clamped(ddq_dsp_qadd(ddq_dsp_asr(high + ddq_dsp_asr(high, 31), shift), output->round));
}

DDQ_DSP_INLINE uint32_t ddq_dsp_code_single(const ddq_dsp_output *output, int32_t acc, int32_t multiplier, int shift) {
    return ddq_dsp_half_clamped(ddq_dsp_qadd(ddq_dsp_asr(ddq_dsp_smmul(acc, multiplier), shift), output->round));
}

/* A code between 0 and 255 from any accumulator by a multiplier of one quarter or more, which `raise` - 2 shifts left:
 * twice the real value rounded down, then half of that and one. Beyond 2^19 accumulators leave every grid. */
DDQ_DSP_INLINE uint32_t ddq_dsp_code_raised(const ddq_dsp_output *output, int32_t acc, int32_t multiplier, int raise) {
    const int32_t raised = (int32_t)((uint32_t)ddq_dsp_ssat20(acc) << raise);
    return ddq_dsp_half_clamped(ddq_dsp_qadd(ddq_dsp_smmul(raised, multiplier), output->round));
}

/* A code between 0 and 255 from any accumulator by any multiplier that leaves it below 2^30. */
__attribute__((noinline)) static uint32_t ddq_dsp_code_exact(const ddq_dsp_output *output, int32_t acc,
                                                             int32_t multiplier, int shift) {
    const int32_t code = ddq_requantize(acc, multiplier, shift, output->is_double);
    return ddq_dsp_half_clamped(ddq_dsp_qadd(ddq_dsp_qadd(code, code), output->round));
}

/* Codes of one channel at `positions` in the bytes 0 and 2, each the way it takes. `e` is output->shift less the
 * channel's shift; constant `positions` and `is_double`. */
DDQ_DSP_INLINE uint32_t ddq_dsp_codes(const ddq_dsp_output *output, int32_t first, int32_t second, int32_t multiplier,
                                      int e, int positions, int is_double) {
    const int raise = (is_double ? 1 : 0) - e;
    uint32_t more = 0;
    if ((uint32_t)e < 32) {
        if (is_double) {
            if (positions == 2)
                more = ddq_dsp_code_double(output, second, multiplier, e);
            return ddq_dsp_code_double(output, first, multiplier, e) | more << 16;
        }
        if (positions == 2)
            more = ddq_dsp_code_single(output, second, multiplier, e);
        return ddq_dsp_code_single(output, first, multiplier, e) | more << 16;
    }
    if (raise > 0 && raise <= 12) {
        if (positions == 2)
            more = ddq_dsp_code_raised(output, second, multiplier, raise);
        return ddq_dsp_code_raised(output, first, multiplier, raise) | more << 16;
    }
    if (positions == 2)
        more = ddq_dsp_code_exact(output, second, multiplier, output->shift - e);
    return ddq_dsp_code_exact(output, first, multiplier, output->shift - e) | more << 16;
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
