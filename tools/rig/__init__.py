"""A machine inside this one, to prove what this one may not have: guests under kvm, and pure cgroup v2 with systemd.

`make test-rig` builds a Debian guest of the host's own release, boots it under QEMU's emulation of an AMD processor,
SVM included, puts this tree in it and runs there what guest/job.sh says. Pass or fail only: no number of it means
anything.
"""
