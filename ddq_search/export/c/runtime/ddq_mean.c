/* Mean over positions. The exporter refuses more than 2^23 positions, so that the sum fits int32. */
#include "ddq_steps.h"

void ddq_mean(const ddq_step *step, uint8_t *arena) {
    const ddq_mean_facts *facts = step->facts;
    const uint8_t *x = arena + step->x[0];
    for (uint32_t c = 0; c < facts->channels; c++) {
        int32_t sum = 0;
        for (uint32_t p = 0; p < facts->positions; p++)
            sum += ddq_get(x, p * facts->channels + c, step->in_bits[0]) - facts->in_zero;
        const int64_t code = ddq_requantize_exact(sum, facts->out.multiplier, facts->out.shift, facts->rounding);
        ddq_put(arena + step->y, c, step->out_bits, ddq_clamped(code + facts->out_zero, 0, facts->high));
    }
}
