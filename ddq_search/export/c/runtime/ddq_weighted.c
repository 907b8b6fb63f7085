/* A weighted layer: hands the arena's addresses to its kernel. */
#include "ddq_steps.h"

void ddq_weighted(const ddq_step *step, uint8_t *arena) {
    const ddq_weighted_facts *facts = step->facts;
    facts->kernel(&facts->layer, arena + step->x[0], arena + step->y, arena + step->scratch);
}
