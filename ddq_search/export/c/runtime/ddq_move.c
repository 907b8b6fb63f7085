/* Codes change place: strided copies into a buffer of its own (concat, slice, transpose). Runs along the last axis that
 * are whole bytes on both sides are copied as bytes. */
#include <string.h>

#include "ddq_steps.h"

static int whole_bytes(const ddq_copy *c, int bits) {
    uint32_t odd = (c->in_start | c->out_start | c->size[DDQ_RANK - 1]) * (uint32_t)bits % 8;
    for (int axis = 0; axis < DDQ_RANK - 1; axis++)
        odd |= (c->in_stride[axis] | c->out_stride[axis]) * (uint32_t)bits % 8;
    return odd == 0 && c->in_stride[DDQ_RANK - 1] == 1 && c->out_stride[DDQ_RANK - 1] == 1;
}

static void copy(const ddq_copy *c, const uint8_t *x, uint8_t *y, int bits) {
    const uint32_t run = whole_bytes(c, bits) ? c->size[DDQ_RANK - 1] : 1;
    uint32_t i[DDQ_RANK] = {0};
    for (;;) {
        uint32_t from = c->in_start, to = c->out_start;
        for (int axis = 0; axis < DDQ_RANK; axis++) {
            from += i[axis] * c->in_stride[axis];
            to += i[axis] * c->out_stride[axis];
        }
        if (run > 1)
            memcpy(y + to * (uint32_t)bits / 8, x + from * (uint32_t)bits / 8, run * (uint32_t)bits / 8);
        else
            ddq_put(y, to, bits, ddq_get(x, from, bits));
        int axis = DDQ_RANK - 1;
        i[axis] += run - 1;
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
