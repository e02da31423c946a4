#!/usr/bin/env perl
# A client's program that forks two servers of its own.
use strict;
use warnings;

use AnyEvent::Task::Server;

AnyEvent::Task::Server::fork_task_server(
    name      => 'one',
    listen    => [ 'unix/', '/tmp/not-there/one.sock' ],
    interface => sub { 'one' },
);

my ( $pipe, $pid ) = AnyEvent::Task::Server::fork_task_server(
    listen              => [ 'unix/', '/tmp/not-there/two.sock' ],
    interface           => { which => sub { 'two' }, hang => sub { select undef, undef, undef, 600 while 1 } },
    hung_worker_timeout => 0.3,
);

die "the client's part runs in a worker\n";
