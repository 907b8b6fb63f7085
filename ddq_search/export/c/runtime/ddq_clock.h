/* The benchmark's clock. A target may define the three functions itself: the ones here are weak. */
#ifndef DDQ_CLOCK_H
#define DDQ_CLOCK_H

#include <stdint.h>

void ddq_clock_start(void);

/* A counter that never falls, in units of ddq_unit(): "instructions", "cycles" or "nanoseconds". */
uint64_t ddq_now(void);
const char *ddq_unit(void);

#endif
