#!/usr/bin/env perl
# A server of AnyEvent::Task whose interface is one function, in AnyEvent's main loop.
use strict;
use warnings;

use AnyEvent;
use AnyEvent::Task::Server;

my $server = AnyEvent::Task::Server->new(
    listen    => [ 'unix/', '/tmp/not-there/one_function.sock' ],
    interface => sub { return { n => scalar @_, argv => [@_] } },
);

my $tick = AE::timer 0.01, 0.01, sub { die "a watcher of the server runs in a worker\n" };

AE::cv->recv;
