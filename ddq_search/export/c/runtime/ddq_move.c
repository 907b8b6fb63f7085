/* Codes change place: strided copies into a buffer of its own (concat, slice, transpose). */
#include "ddq_steps.h"

static void copy(const ddq_copy *c, const uint8_t *x, uint8_t *y, int bits) {
    uint32_t i[DDQ_RANK] = {0};
    for (;;) {
        uint32_t from = c->in_start, to = c->out_start;
        for (int axis = 0; axis < DDQ_RANK; axis++) {
            from += i[axis] * c->in_stride[axis];
            to += i[axis] * c->out_stride[axis];
        }
        ddq_put(y, to, bits, ddq_get(x, from, bits));
        int axis = DDQ_RANK - 1;
        while (axis >= 0 && ++i[axis] == c->size[axis])
            i[axis--] = 0;
        if (axis < 0)
            return;
    }
}

void ddq_move(const ddq_step *step, uint8_t *arena) {
    const ddq_move_facts *facts = step->facts;
    for (uint32_t n = 0; n < facts->count; n++)
        copy(&facts->copies[n], arena + facts->copies[n].x, arena + step->y, step->out_bits);
}
