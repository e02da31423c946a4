mod deadlines;
mod pool;
mod queue;
