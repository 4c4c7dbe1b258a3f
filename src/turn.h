/* turn.h - one turn of the loop: poll, timers, callbacks, flush. */
#ifndef FASTLOOP_TURN_H
#define FASTLOOP_TURN_H

#include "loop.h"

/* One turn. -1 with an exception that must leave run_forever(). */
int fl_loop_turn(fl_loop *loop);

/* Turn until loop->stopping. asyncio.current_task() is none afterwards. */
int fl_loop_run(fl_loop *loop);

#endif
