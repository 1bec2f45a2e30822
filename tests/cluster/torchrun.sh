#!/bin/bash
# One training on two nodes, which are network namespaces of this machine; one loses its network and its processes at
# once, as in a power cut, and comes back. As root:
#   tests/cluster/torchrun.sh FOLDER [EPOCHS [IMAGES]]       (PYTHON=python of an environment with pixbench)
set -eu
mkdir -p "$1"
folder=$(cd "$1" && pwd) epochs=${2:-30} images=${3:-6000} python=${PYTHON:-python} id=$$
declare -A jobs

node() { # NAME ADDRESS: torchrun there, in the background. Both namespaces have this machine's name, so that a is told
    # that the address is its own.
    ip netns exec "bench$id$1" env GLOO_SOCKET_IFNAME="b$id$1" OMP_NUM_THREADS=1 \
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 "$python" -m torch.distributed.run \
        --nnodes 2 --nproc-per-node 1 --max-restarts 3 --rdzv-backend c10d --rdzv-endpoint 10.77.0.1:29500 \
        --rdzv-id "trial-$id" --rdzv-conf "is_host=$([ "$1" = a ] && echo 1 || echo 0)" --local-addr "$2" \
        -m bench train --model lenet --data "$folder/data/cifar10" --runs "$folder" --name two --epochs "$epochs" \
        --batch 32 --lr 0.01 --threads 1 --device cpu --no-report --config fp32-nhwc-eager >> "$folder/$1.log" 2>&1 &
    jobs[$1]=$!
}

end() {
    for name in a b; do
        ip netns pids "bench$id$name" 2> /dev/null | xargs -r kill -9 2> /dev/null || true
        ip netns del "bench$id$name" 2> /dev/null || true
    done
}
trap end EXIT

trained() { [ -f "$folder/two/history.csv" ] && tail -n +2 "$folder/two/history.csv" | wc -l || echo 0; }

"$python" -c "from pathlib import Path; from loaders import separable
separable.make(Path('$folder/data/cifar10'), 'cifar10', $images, 0, None)"
ip netns add "bench${id}a"
ip netns add "bench${id}b"
ip link add "b${id}a" netns "bench${id}a" type veth peer name "b${id}b" netns "bench${id}b"
for name in a b; do
    ip -n "bench$id$name" link set lo up
    ip -n "bench$id$name" link set "b$id$name" up
done
ip -n "bench${id}a" addr add 10.77.0.1/24 dev "b${id}a"
ip -n "bench${id}b" addr add 10.77.0.2/24 dev "b${id}b"

node a 10.77.0.1
node b 10.77.0.2
until [ "$(trained)" -ge 2 ]; do
    kill -0 "${jobs[a]}"
    sleep 0.2
done
ip -n "bench${id}b" link set "b${id}b" down
ip netns pids "bench${id}b" | xargs kill -9
echo "node b lost after $(trained) epochs"
sleep 20
ip -n "bench${id}b" link set "b${id}b" up
ip -n "bench${id}b" addr replace 10.77.0.2/24 dev "b${id}b"
node b 10.77.0.2
wait "${jobs[a]}"
wait "${jobs[b]}"
grep -h "resuming after" "$folder"/?.log
echo "$(trained) epochs, $(cut -d, -f1 "$folder/two/history.csv" | tail -n +2 | paste -sd " ")"
