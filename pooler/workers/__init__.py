"""Several worker processes that are one pgnear: `workers = N`.

    parent ──── line ──── worker 0     each with its own reactor, pools, cache, console
       │
       ├─────── line ──── worker 1     board: shared memory that all of them read at any time
       └ ...

- `parent` starts the workers, holds the listening sockets for them, passes signals on, and starts a worker again that
  has died. It serves HTTP and sees no traffic.
- `line` is what two ends of a pipe say to each other: requests and answers. The parent passes on what workers ask of
  each other (`peers`).
- `board` is what cannot wait for a line: writes that end cached answers, the number of clients. Who has written puts it
  on the board before its client hears of the write; who has read something from a client looks at the board before it
  answers. So no client is served what is older than a write that it could have heard of, whichever worker it talks to.
- `share` is a worker's part of what the configuration allows all of them together.

A client's process id says which worker has it, so a cancel request finds its way.
"""
