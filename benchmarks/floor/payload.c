/* The payload of every contestant: says one byte as soon as it runs, then sleeps. Static, so that no loader runs. */
#include <unistd.h>

int main(void) {
    if (write(1, "r", 1) != 1) return 1;
    for (;;) pause();
}
