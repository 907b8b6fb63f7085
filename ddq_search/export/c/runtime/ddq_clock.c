/* Cortex-M: the cycle counter of the debug unit. Elsewhere: the monotonic clock of the operating system. */
#if !defined(__ARM_ARCH_PROFILE) || __ARM_ARCH_PROFILE != 'M'
#define _POSIX_C_SOURCE 199309L
#include <time.h>
#endif

#include "ddq_clock.h"

#if defined(__GNUC__) || defined(__clang__)
#define WEAK __attribute__((weak))
#else
#define WEAK
#endif

#if defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'

/* ARMv7-M architecture reference manual: C1.6.5 DEMCR, C1.8 DWT. The 32-bit counter is read at least once per wrap. */
#define DEMCR (*(volatile uint32_t *)0xE000EDFCu)
#define DWT_CTRL (*(volatile uint32_t *)0xE0001000u)
#define DWT_CYCCNT (*(volatile uint32_t *)0xE0001004u)

WEAK void ddq_clock_start(void) {
    DEMCR |= 1u << 24;
    DWT_CYCCNT = 0;
    DWT_CTRL |= 1u;
}

WEAK uint64_t ddq_now(void) {
    static uint32_t last;
    static uint64_t wraps;
    const uint32_t now = DWT_CYCCNT;
    wraps += now < last;
    last = now;
    return (wraps << 32) + now;
}

WEAK const char *ddq_unit(void) {
    return "cycles";
}

#else

WEAK void ddq_clock_start(void) {
}

WEAK uint64_t ddq_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

WEAK const char *ddq_unit(void) {
    return "nanoseconds";
}

#endif
