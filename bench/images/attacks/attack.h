/* What the attacks share. Each prints one line of JSON: whether it got what it went for, the step that ended it, the
 * errno of that step, and what it saw. Who judges is the host's side (bench/probes): an answer is a claim, no proof. */
#ifndef ATTACK_H
#define ATTACK_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

typedef int verb(char **words);

struct attack {
    const char *name;
    int words; /* that it needs */
    verb *run;
};

extern int scratch; /* a folder that the instance may write, opened before the root is changed; -1 if there is none */

int yes(const char *step, const char *said); /* it got it */
int no(const char *step);                    /* it did not; errno says why */
int slurp(const char *path, char *text, size_t size); /* bytes read, -1 with errno; text ends with a zero */
int has(const char *text, int length, const char *wanted); /* `wanted` in bytes that may hold zeros */
int reopened(const char *name, const char *text); /* write `text` over the start of a file; 0 or -1 with errno */

extern const struct attack processes[], files[], kernel[], network[], bombs[];
int canary(char **words);
#endif
