#!/bin/sh
# Prolog of slurmd, run as root before a job starts on a node: writes down what the agent may say about the job.
# Set PrologFlags=Alloc,Contain in slurm.conf. A failure drains the node, so that no job runs with what is known of another.
set -eu
umask 022
PATH=/usr/sbin:/usr/bin:/sbin:/bin

folder=/run/bonafide-slurm

case ${SLURM_JOB_ID:-} in
'' | *[!0-9]*) exit 1 ;;
esac

# A name in JSON, or null when it is missing or has characters that would need care.
name() {
    case $1 in
    '' | *[!A-Za-z0-9@+./_-]*) printf null ;;
    *) printf '"%s"' "$1" ;;
    esac
}

# A number in JSON, or null.
number() {
    case $1 in
    '' | *[!0-9]*) printf null ;;
    *) printf %s "$1" ;;
    esac
}

# 0,1,4-6 as 0,1,4,5,6.
gpus() {
    list=
    for part in $(printf %s "$1" | tr , ' '); do
        case $part in
        *[!0-9-]* | -* | *-) exit 1 ;;
        esac
        at=${part%-*}
        last=${part#*-}
        while [ "$at" -le "$last" ]; do
            list=$list${list:+,}$at
            at=$((at + 1))
        done
    done
    printf %s "$list"
}

mkdir -p -m 755 "$folder"
read -r uptime _ </proc/uptime
read -r boot </proc/sys/kernel/random/boot_id
devices=$(gpus "${SLURM_JOB_GPUS:-}")
file=$folder/$SLURM_JOB_ID.json
printf '{"job": "%s", "boot_id": "%s", "uptime": %s, "ends": %s, "uid": %s, "user": %s, "account": %s, "partition": %s, "gpus": [%s]}\n' \
    "$SLURM_JOB_ID" "$boot" "$uptime" "$(number "${SLURM_JOB_END_TIME:-}")" "$(number "${SLURM_JOB_UID:-}")" \
    "$(name "${SLURM_JOB_USER:-}")" "$(name "${SLURM_JOB_ACCOUNT:-}")" "$(name "${SLURM_JOB_PARTITION:-}")" "$devices" >"$file.new"
mv -f "$file.new" "$file"
