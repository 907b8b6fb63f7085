/* Product of two tensors, at most 255 * 255 before requantization. */
#include "ddq_steps.h"

void ddq_multiply(const ddq_step *step, uint8_t *arena) {
    const ddq_multiply_facts *facts = step->facts;
    for (uint32_t i = 0; i < step->elements; i++) {
        int32_t product = 1;
        for (int side = 0; side < 2; side++) {
            const uint32_t index = i % facts->elements[side];
            product *= ddq_get(arena + step->x[side], index, step->in_bits[side]) - facts->in_zero[side];
        }
        const int64_t code = ddq_requantize_exact(product, facts->out.multiplier, facts->out.shift, facts->rounding);
        ddq_put(arena + step->y, i, step->out_bits, ddq_clamped(code + facts->out_zero, facts->low, facts->high));
    }
}
