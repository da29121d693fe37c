#!/bin/bash
# Unpack the job, run it, hand back its results and its status, power off. Ports: see machine.py.
ports=/dev/virtio-ports
{
    mount -o ro /dev/vdb /opt/venv && mount /dev/vdc /var/cache/bench && tar -xf /dev/vdd -C /job && cd /job &&
        bash /job/job.sh
    status=$?
    tar -C /out -cf $ports/rig.out .
} > $ports/rig.log 2>&1 < /dev/null
echo $status > $ports/rig.status
systemctl poweroff -ff
