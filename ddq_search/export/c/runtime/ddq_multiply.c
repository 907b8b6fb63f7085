/* Product of two tensors, at most 255 * 255 before requantization. */
#include "ddq_steps.h"

void ddq_multiply(const ddq_step *step, uint8_t *arena) {
    const ddq_multiply_facts *facts = step->facts;
    uint32_t at[2] = {0, 0};
    for (uint32_t i = 0; i < step->elements; i++) {
        int32_t product = 1;
        for (int side = 0; side < 2; side++) {
            product *= ddq_get(arena + step->x[side], at[side], step->in_bits[side]) - facts->in_zero[side];
            at[side] = at[side] + 1 == facts->elements[side] ? 0 : at[side] + 1;
        }
        const int64_t code = ddq_requantize_exact(product, facts->out.multiplier, facts->out.shift, facts->rounding);
        ddq_put(arena + step->y, i, step->out_bits, ddq_clamped(code + facts->out_zero, facts->low, facts->high));
    }
}
