/* QEMU TCG plugin (API version 1): how often every instruction between two addresses is executed.
 *
 *   -plugin libqemu_blocks.so,begin=ADDRESS,end=ADDRESS,out=FILE
 *
 * writes, for every time that `end` is executed, one line "address executions" (hexadecimal, decimal) per instruction
 * that was executed since `begin` was, and an empty line. Declarations after the public interface.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*translated)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*executed)(unsigned int cpu, void *data);
enum { NO_REGISTERS = 0, ADD_U64 = 0, SLOTS = 1 << 20 };

extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
extern void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, int, void *, uint64_t);
extern void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, executed, int, void *);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;
EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int argc, char **argv);

static uint64_t addresses[SLOTS], counts[SLOTS], before[SLOTS], begin_address, end_address;
static FILE *output;

/* The counter of an address: open addressing, never full (a program has far fewer instructions). */
static size_t slot(uint64_t address) {
    size_t at = (size_t)(address >> 2) % SLOTS;
    while (addresses[at] && addresses[at] != address)
        at = (at + 1) % SLOTS;
    addresses[at] = address;
    return at;
}

static void on_begin(unsigned int cpu, void *data) {
    (void)cpu, (void)data;
    memcpy(before, counts, sizeof counts);
}

static void on_end(unsigned int cpu, void *data) {
    (void)cpu, (void)data;
    for (size_t i = 0; i < SLOTS; i++)
        if (counts[i] != before[i])
            fprintf(output, "%llx %llu\n", (unsigned long long)addresses[i], (unsigned long long)(counts[i] - before[i]));
    fprintf(output, "\n");
    fflush(output);
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
    (void)id;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        struct qemu_plugin_insn *const instruction = qemu_plugin_tb_get_insn(block, i);
        const uint64_t address = qemu_plugin_insn_vaddr(instruction);
        if (address == begin_address)
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_begin, NO_REGISTERS, NULL);
        if (address == end_address)
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_end, NO_REGISTERS, NULL);
        qemu_plugin_register_vcpu_insn_exec_inline(instruction, ADD_U64, &counts[slot(address)], 1);
    }
}

int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "begin=", 6))
            begin_address = strtoull(argv[i] + 6, NULL, 0);
        else if (!strncmp(argv[i], "end=", 4))
            end_address = strtoull(argv[i] + 4, NULL, 0);
        else if (!strncmp(argv[i], "out=", 4))
            output = fopen(argv[i] + 4, "w");
    }
    if (output == NULL)
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    return 0;
}
