/* Element-wise function as a table over codes. */
#include "ddq_steps.h"

void ddq_lookup(const ddq_step *step, uint8_t *arena) {
    const ddq_lookup_facts *facts = step->facts;
    for (uint32_t i = 0; i < step->elements; i++) {
        const uint8_t code = ddq_get(arena + step->x[0], i, step->in_bits[0]);
        ddq_put(arena + step->y, i, step->out_bits, facts->table[code]);
    }
}
