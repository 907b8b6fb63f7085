/* Start-up of a bare-metal Cortex-M program under semihosting: vectors, coprocessor, arguments, main, exit status. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SYS_GET_CMDLINE = 0x15, SYS_EXIT = 0x18, STOPPED_RUN_TIME_ERROR = 0x20023, LINE_BYTES = 512, WORDS = 32 };

extern uint32_t __stack, __bss_start__, __bss_end__;
extern void initialise_monitor_handles(void);
extern int main(int argc, char **argv);

void _init(void);
void _fini(void);
void ddq_reset(void);

void _init(void) {}

void _fini(void) {}

static uint32_t semihost(uint32_t operation, uint32_t argument) {
    register uint32_t r0 __asm__("r0") = operation;
    register uint32_t r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

/* Splits the command line at blanks; returns how many words it has. */
static int arguments(char **words) {
    static char line[LINE_BYTES];
    uint32_t block[2] = {(uint32_t)line, LINE_BYTES};
    int count = 0;
    if (semihost(SYS_GET_CMDLINE, (uint32_t)block) == 0)
        for (char *word = strtok(line, " "); word && count < WORDS - 1; word = strtok(NULL, " "))
            words[count++] = word;
    words[count] = NULL;
    return count;
}

void ddq_reset(void) {
    static char *words[WORDS];
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* CPACR: floating point and Helium */
#if __ARM_ARCH >= 8 && defined(__ARM_FEATURE_MVE)
    *(volatile uint32_t *)0xE000ED14 |= 1u << 19; /* CCR.LOB: low-overhead branches */
#endif
    __asm__ volatile("dsb\n\tisb" ::: "memory");
    for (uint32_t *word = &__bss_start__; word < &__bss_end__; word++)
        *word = 0;
    initialise_monitor_handles();
    const int count = arguments(words);
    exit(main(count, words));
}

static void fault(void) {
    for (;;)
        semihost(SYS_EXIT, STOPPED_RUN_TIME_ERROR);
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &__stack, (const void *)ddq_reset, (const void *)fault, (const void *)fault, (const void *)fault,
    (const void *)fault, (const void *)fault, (const void *)fault, 0, 0, 0, (const void *)fault,
    (const void *)fault, 0, (const void *)fault, (const void *)fault,
};
