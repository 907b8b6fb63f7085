/* Sum of two tensors on their own grids. |x - in_zero| << left_shift < 2^28, so that both terms and their sum fit int32. */
#include "ddq_steps.h"

void ddq_add(const ddq_step *step, uint8_t *arena) {
    const ddq_add_facts *facts = step->facts;
    for (uint32_t i = 0; i < step->elements; i++) {
        int32_t sum = 0;
        for (int side = 0; side < 2; side++) {
            const uint32_t index = i % facts->elements[side];
            const int32_t code = ddq_get(arena + step->x[side], index, step->in_bits[side]);
            sum += ddq_requantize((code - facts->in_zero[side]) * (1 << facts->left_shift), facts->in[side].multiplier,
                                  facts->in[side].shift, facts->rounding);
        }
        const int64_t code = ddq_requantize_exact(sum, facts->out.multiplier, facts->out.shift, facts->rounding);
        ddq_put(arena + step->y, i, step->out_bits, ddq_clamped(code + facts->out_zero, facts->low, facts->high));
    }
}
