"""One contender in a process of its own: `worker.py THREADS CASE CONTENDER`, commands on stdin.

"check" is answered by the loss after the steps, "time" n by the seconds a step over n epochs.
"""

import json
import os
import sys
import warnings


def main(threads: int, case_name: str, name: str) -> None:
    """Answer commands until there are no more."""
    os.sched_setaffinity(0, json.loads(os.environ["BENCH_CPUS"]))
    import peers  # after that, because libraries count their cores when they are imported

    from chainrule import bench

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print must not get between the answers
    case, contender = bench.CASES[case_name], None
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        answer: object
        try:
            if contender is None:
                contender = peers.CONTENDERS[name](case, threads)
            if command == "check":
                answer = bench.checked(case, contender)
            else:
                answer = bench.timed(case, contender, *arguments)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")  # of the peers
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
