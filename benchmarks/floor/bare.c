/* The bare floor: what no container can do without. clone (mount, uts, ipc and pid namespaces), overlay, proc,
 * pivot_root, exec.   bare WORK LOWER PAYLOAD [ARG...]
 */
#include "server.h"

static pid_t launch(int id, int output) {
    char own[256], root[300], proc[320];
    snprintf(own, sizeof own, "%s/%d", work, id);
    must(!mkdir(own, 0755), own);
    pid_t pid = clone_with(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID);
    must(pid >= 0, "clone3");
    if (pid) return pid;
    make_folders(own);
    mount_overlay(own, root, sizeof root);
    snprintf(proc, sizeof proc, "%s/proc", root);
    must(!mount("proc", proc, "proc", 0, NULL), "proc");
    must(!chdir(root), root);
    must(!syscall(SYS_pivot_root, ".", "."), "pivot_root");
    must(!umount2(".", MNT_DETACH), "umount old root");
    must(!chdir("/"), "chdir");
    must(dup2(output, 1) == 1, "dup2");
    execv(payload[0], payload);
    must(0, payload[0]);
    return 0;
}

static void destroyed(int id) { (void)id; }

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    work = argv[1], lower = argv[2], payload = argv + 3;
    serve();
    return 0;
}
