#!/usr/bin/env perl
# A server of AnyEvent::Task, whose code does not depend on taskfork:
#     taskfork serve --protocol json --listen unix:/tmp/ledger.sock -- \
#         perl -Iexamples/perl_server/lib -MAnyEvent::Task::Server examples/perl_server/ledger.pl
#     taskfork call unix:/tmp/ledger.sock add coffee 3 --log
use common::sense;

use AnyEvent;
use AnyEvent::Task::Server;
use AnyEvent::Task::Logger;

my ( $ledger, @pending );

AnyEvent::Task::Server->new(
    name   => 'ledger',
    listen => [ 'unix/', '/tmp/ledger.sock' ],
    setup  => sub { $ledger = { coffee => 10 } },

    interface => {
        # `commit` applies the entry.
        add => sub {
            my ( $name, $amount ) = @_;
            die "$amount is no amount\n" unless $amount =~ /\A-?\d+\z/;
            logger->info( 'adds', { name => $name, amount => $amount } );
            push @pending, [ $name, $amount ];
            return 0 + @pending;
        },
        commit => sub {
            my $timer = logger->timer('writing');
            $ledger->{ $_->[0] } += $_->[1] for @pending;
            @pending = ();
            logger->data->{entries} = keys %$ledger;
            return $ledger;
        },
        total   => sub { $ledger->{ $_[0] } // die "there is no $_[0]\n" },
        pending => sub { 0 + @pending },
        pid     => sub { $$ },
    },

    # Roll back what the checkout has not committed.
    checkout_done => sub { @pending = () },
)->run;
