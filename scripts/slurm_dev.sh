#!/usr/bin/env bash
# A real SLURM of two nodes on one host, for tests and for trying sweeps: `scripts/slurm_dev.sh --help`.
set -euo pipefail
umask 022  # jobs of other users read slurm.conf

usage() {
  cat << 'TEXT'
usage: scripts/slurm_dev.sh start|stop|status|env

A real SLURM of two nodes, n1 and n2, on this host: Debian, root, no systemd, no cgroups, no accounting database.
Jobs of the partition urgent preempt those of main, the default.

  start    brings up what is not up; installs slurm-wlm and munge where they are absent
  stop     cancels all jobs, waits for them and ends the daemons; logs and the record of jobs stay in the folder
  status   says what is up; exit status 3 unless everything is
  env      prints what points a shell to this cluster: eval "$(scripts/slurm_dev.sh env)"

  PRIVLM_SLURM_DIR           the folder that holds everything         [${TMPDIR:-/tmp}/privlm-slurm]
  PRIVLM_SLURM_PORT          the first of three ports                 [the last time's, else any that are free]
  PRIVLM_SLURM_MIN_JOB_AGE   seconds that a finished job is known     [600]

Port and age count when a cluster starts of which nothing is up.
Exit status: 0 done, 2 wrong use, 3 something does not come up or does not end.
TEXT
}

die() {  # die STATUS MESSAGE
  echo "slurm_dev.sh: $2" >&2
  exit "$1"
}

DIR=$(realpath -m "${PRIVLM_SLURM_DIR:-${TMPDIR:-/tmp}/privlm-slurm}")
PORT=${PRIVLM_SLURM_PORT:-}
MIN_JOB_AGE=${PRIVLM_SLURM_MIN_JOB_AGE:-600}
DAEMONS=(munged slurmctld slurmd.n1 slurmd.n2)
export SLURM_CONF=$DIR/slurm.conf

prepare() {
  [ "$(id -u)" = 0 ] || die 2 "start and stop need root"
  # The path of a socket ends at 107 bytes, those of job steps are the longest; slurm.conf has no quotes.
  [[ $DIR =~ ^[A-Za-z0-9_/.+-]{2,70}$ ]] \
    || die 2 "PRIVLM_SLURM_DIR=$DIR: needs a path of at most 70 letters, digits and characters of _/.+-"
  [[ ${PORT:-1024} =~ ^[1-9][0-9]{3,4}$ && ${PORT:-1024} -le 65533 ]] \
    || die 2 "PRIVLM_SLURM_PORT=$PORT: needs a number from 1024 to 65533"
  [[ $MIN_JOB_AGE =~ ^[1-9][0-9]{0,5}$ ]] || die 2 "PRIVLM_SLURM_MIN_JOB_AGE=$MIN_JOB_AGE: needs a number of seconds"
  mkdir -p "$DIR" || exit 2
  [ -O "$DIR" ] || die 2 "PRIVLM_SLURM_DIR=$DIR: belongs to another user"
  exec 9> "$DIR/lock"
  flock -w 120 9 || die 3 "another start or stop holds $DIR/lock"
}

wait_for() {  # wait_for SECONDS COMMAND...
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < end)) || return 1
    sleep 0.1
  done
}

pid_of() { cat "$DIR/$1.pid" 2> /dev/null || true; }  # pid_of DAEMON

# A pid file outlives a killed daemon; its number may be another process by now, even a daemon of a second cluster.
ours() {  # ours PID DAEMON
  [ -n "$1" ] && [ "$(cat "/proc/$1/comm" 2> /dev/null)" = "${2%.*}" ] && grep -qsF "$DIR/" "/proc/$1/cmdline"
}
ended() { ! ours "$@"; }
alive() { ours "$(pid_of "$1")" "$1"; }
all_alive() { for daemon in "${DAEMONS[@]}"; do alive "$daemon" || return 1; done; }
all_dead() { for daemon in "${DAEMONS[@]}"; do ! alive "$daemon" || return 1; done; }

install_packages() {
  ! command -v slurmctld slurmd munged > /dev/null || return 0
  command -v apt-get > /dev/null || die 2 "SLURM is not installed and there is no apt-get: this needs Debian"
  # Others may be installing: apt-get waits for the lock of the packages, not for that of their lists.
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120)
  wait_for 120 "${apt[@]}" update 2> /dev/null || true
  "${apt[@]}" install -y --no-install-recommends slurm-wlm munge > /dev/null \
    || die 3 "apt-get does not install slurm-wlm and munge"
}

answers() { (: < "/dev/tcp/127.0.0.1/$1") 2> /dev/null; }
free_from() { ! answers "$1" && ! answers $(($1 + 1)) && ! answers $(($1 + 2)); }
configured_port() { sed -n 's/^SlurmctldPort=//p' "$SLURM_CONF" 2> /dev/null || true; }

choose_port() {
  local port=${PORT:-$(configured_port)}  # job steps that outlived the daemons report to the port of the last time
  [ -z "$PORT" ] || free_from "$PORT" || die 2 "PRIVLM_SLURM_PORT=$PORT: one of the three ports from there is taken"
  # The system gives no port below 32768 to connections.
  until [ -n "$port" ] && free_from "$port"; do port=$((20000 + RANDOM % 4000 * 3)); done
  echo "$port"
}

write_conf() {
  local host port cpus memory
  host=$(uname -n)
  host=${host%%.*}
  port=$(choose_port) || exit
  cpus=$(getconf _NPROCESSORS_ONLN)  # nproc would obey OMP_NUM_THREADS
  ((cpus > 1)) || cpus=2             # two tasks fit on a node, whatever the host
  memory=$(awk '/^MemTotal:/ { print int($2 / 1024 * 0.45) }' /proc/meminfo)
  cat > "$SLURM_CONF" << CONF
ClusterName=privlm
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$DIR/munge/socket
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool.%n
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
MailProg=/bin/true

# Neither cgroups nor a database: processes are found by their descent, finished jobs in a file.
ProctrackType=proctrack/linuxproc
JobCompType=jobcomp/filetxt
JobCompLoc=$DIR/log/jobs.txt

# A job starts within a second and has five to end in.
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
KillWait=5
MinJobAge=$MIN_JOB_AGE

# A preempted job gets the signal it has asked for (--signal), then 20 seconds, and is queued again.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=main Nodes=n[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=n[1-2] PriorityTier=10

# Each node takes the whole host for its own; one that was down comes back by itself.
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=$cpus RealMemory=$memory
CONF
}

launch() {  # launch DAEMON COMMAND...
  local name=$1
  shift
  # What it says before it opens its log goes there as well. It must not hold the lock.
  alive "$name" || "$@" < /dev/null >> "$DIR/log/$name.log" 2>&1 9>&- || true
}

up() {  # up DAEMON CONDITION...
  local name=$1 begin=$SECONDS
  shift
  until alive "$name" && "$@"; do
    if ((SECONDS - begin > 20)) || { ((SECONDS - begin > 2)) && ! alive "$name"; }; then
      die 3 "$name does not come up; the end of $DIR/log/$name.log:"$'\n'"$(tail -n 8 "$DIR/log/$name.log")"
    fi
    sleep 0.1
  done
}

controller_up() { scontrol ping 2> /dev/null | grep -q 'is UP'; }

# slurmctld calls a node idle for minutes whose slurmd was killed: the new one must have spoken to it.
node_up() {  # node_up NAME
  local node
  node=$(scontrol -o show node "$1" 2> /dev/null) && [[ $node =~ SlurmdStartTime=([0-9][^ ]*) ]] \
    && (($(date -d "${BASH_REMATCH[1]}" +%s) >= $(stat -c %Y "$DIR/slurmd.$1.pid") - 1)) \
    && [[ ! $node =~ State=[A-Z+_]*([*]|DOWN|UNKNOWN|INVAL) ]]
}

bring_up() {
  local node
  mkdir -p "$DIR"/{munge,state,log,spool.n1,spool.n2}
  [ -s "$DIR/munge/key" ] || (umask 077 && head -c 128 /dev/urandom > "$DIR/munge/key")
  ! all_dead || write_conf
  launch munged munged --force --key-file="$DIR/munge/key" --socket="$DIR/munge/socket" --pid-file="$DIR/munged.pid" \
    --seed-file="$DIR/munge/seed" --log-file="$DIR/log/munged.log"
  up munged test -S "$DIR/munge/socket"
  chmod 711 "$DIR/munge"  # the socket is for all users
  launch slurmctld slurmctld -f "$SLURM_CONF"
  up slurmctld controller_up
  for node in n1 n2; do launch "slurmd.$node" slurmd -f "$SLURM_CONF" -N "$node"; done
  for node in n1 n2; do up "slurmd.$node" node_up "$node"; done
}

start() {
  prepare
  install_packages
  bring_up
  echo "SLURM is up in $DIR, ports $(configured_port) and the next two: eval \"\$(scripts/slurm_dev.sh env)\""
}

# slurmstepd works where the logs are.
no_steps() {
  local comm
  while read -r comm; do
    [ "$(readlink "${comm%comm}cwd")" != "$DIR/log" ] || return 1
  done < <(grep -lsx slurmstepd /proc/[0-9]*/comm)
}

# Cancels again and again: a job that is about to end may submit one more. A job that is completing has processes only
# where it has steps, and may be called so for minutes where its slurmd was killed.
no_jobs() {
  local jobs
  jobs=$(squeue -h -o '%F %T' 2> /dev/null) || return 1
  [ -z "$jobs" ] || cut -d ' ' -f 1 <<< "$jobs" | xargs scancel 2> /dev/null || true
  [ -z "$(sed /COMPLETING/d <<< "$jobs")" ] && no_steps
}

# Without cgroups SLURM finds what descends from a job, not the children of a process of it that was killed.
job_processes() {
  grep -lszxF "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ | xargs -r grep -lsz ^SLURM_JOB_ID= | cut -d / -f 3 || true
}
no_processes() { no_steps && [ -z "$(job_processes)" ]; }

stop() {
  local daemon pid left=()
  prepare
  if ! compgen -G "$DIR/*.pid" > /dev/null && no_processes; then
    echo "nothing is up in $DIR"
    return
  fi
  ! job_processes | grep -qx $$ || die 2 "stop would end itself: this shell belongs to a job"
  # Jobs whose daemons were killed live on, and only daemons can end them.
  if all_alive || (bring_up); then wait_for 30 no_jobs || left+=("jobs"); fi
  job_processes | xargs -r kill -KILL 2> /dev/null || true
  wait_for 5 no_processes || left+=("processes of jobs")
  for daemon in slurmd.n1 slurmd.n2 slurmctld munged; do
    pid=$(pid_of "$daemon")
    ! ours "$pid" "$daemon" || kill "$pid"
    wait_for 10 ended "$pid" "$daemon" || left+=("$daemon")  # a daemon removes its pid file before it ends
    rm -f "$DIR/$daemon.pid"
  done
  [ ${#left[@]} = 0 ] || die 3 "still there: ${left[*]}; the logs are in $DIR/log"
}

status() {
  local daemon
  for daemon in "${DAEMONS[@]}"; do
    if alive "$daemon"; then echo "$daemon is up"; else echo "$daemon is down"; fi
  done
  all_alive || exit 3
  sinfo
}

case "$#:${1:-}" in
  1:start) start ;;
  1:stop) stop ;;
  1:status) status ;;
  1:env) printf 'export SLURM_CONF=%q\n' "$SLURM_CONF" ;;
  1:--help | 1:-h) usage ;;
  *) usage >&2 && exit 2 ;;
esac
