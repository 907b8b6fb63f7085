/* Codes change place within their own buffer: a reshape whose reader needs another order.
 *
 * Follows each cycle of the permutation from its smallest index, so no memory beside the buffer is needed; finding
 * that index costs up to the cycle's length for every code.
 */
#include "ddq_steps.h"

/* The index at which the code of index `from` belongs. */
static uint32_t target(const ddq_reorder_facts *f, uint32_t from) {
    uint32_t flat = 0, to = 0;
    for (int axis = 0; axis < DDQ_RANK; axis++) {
        flat += from / f->in_stride[axis] * f->in_flat[axis];
        from %= f->in_stride[axis];
    }
    for (int axis = 0; axis < DDQ_RANK; axis++) {
        to += flat / f->out_flat[axis] * f->out_stride[axis];
        flat %= f->out_flat[axis];
    }
    return to;
}

void ddq_reorder(const ddq_step *step, uint8_t *arena) {
    const ddq_reorder_facts *facts = step->facts;
    uint8_t *x = arena + step->y;
    for (uint32_t start = 0; start < step->elements; start++) {
        uint32_t at = target(facts, start);
        while (at > start)
            at = target(facts, at);
        if (at < start)
            continue; /* this cycle was turned from a smaller index */
        uint8_t carried = ddq_get(x, start, step->out_bits);
        do {
            at = target(facts, at);
            const uint8_t next = ddq_get(x, at, step->out_bits);
            ddq_put(x, at, step->out_bits, carried);
            carried = next;
        } while (at != start);
    }
}
