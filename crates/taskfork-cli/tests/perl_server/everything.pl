#!/usr/bin/env perl
# A server of AnyEvent::Task that knows nothing of taskfork, with all kinds of functions and faults.
use common::sense;

use AnyEvent::Task::Server;
use AnyEvent::Task::Logger;

package Foo {
    use overload '""' => sub { "Foo of $_[0]{of}" }, fallback => 1;
}

package Mute {
    use overload '""' => sub { die "it says nothing\n" }, fallback => 1;
}

my ( $setups, $checkouts ) = ( 0, 0 );
my ( @rows, $held );

# As a server has them, which then stops listening.
$SIG{$_} = sub { exit 9 } for qw(TERM INT HUP QUIT);

my $server = AnyEvent::Task::Server->new(
    name                => 'everything',
    listen              => [ 'unix/', '/tmp/not-there/everything.sock' ],
    hung_worker_timeout => $ENV{HUNG_AFTER} || 30,

    setup => sub {
        $setups++;
        logger->info( 'set up', $setups ) if $ENV{SETUP_LOGS};
        die "no database\n" if $ENV{SETUP_FAILS} && $setups == 1;
    },

    checkout_done => sub {
        $checkouts++;
        @rows = ();
        die "cannot roll back\n" if $held eq 'die';
        if ( $held eq 'last' ) { no warnings; last }
    },

    interface => {
        # Those of the recorded sessions.
        echo      => sub { $_[0] },
        args      => sub { \@_ },
        count     => sub { scalar @_ },
        add       => sub { $_[0] + $_[1] },
        nothing   => sub { return },
        unicode   => sub { 'café 😀 ' . length $_[0] },
        boom      => sub { die "ouch\n" },
        object    => sub { bless {}, 'Bar' },
        code      => sub { sub { } },
        logboom   => sub { logger->error('before dying'); die "dead\n" },
        log       => sub {
            logger->info('about to compute some operation');
            my $timer = logger->timer('computing some operation');
            select undef, undef, undef, 0.05;
            undef $timer;
            logger->warn( 'odd', { n => 1 } );
            logger->data->{k} = 'v';
            return 'logged';
        },
        exit_now => sub { exit 1 },
        hang     => sub { select undef, undef, undef, 600 while 1 },
        pid      => sub { $$ },

        # What a checkout keeps.
        keep      => sub { push @rows, @_; scalar @rows },
        kept      => sub { [@rows] },
        setups    => sub { $setups },
        checkouts => sub { $checkouts },
        hold      => sub { $held = shift },

        # Context, errors and results of all kinds.
        list        => sub { my @list = ( 7, 8, 9 ); @list },
        context     => sub { wantarray },
        throw       => sub { die @_ },
        throw_hash  => sub { die { code => 5, why => ['a'] } },
        throw_foo   => sub { die bless { of => shift }, 'Foo' },
        throw_mute  => sub { die bless {}, 'Mute' },
        croaks      => sub { require Carp; Carp::croak('from here') },
        leaves      => sub { no warnings; last },
        foo         => sub { bless { of => shift }, 'Foo' },
        mute        => sub { bless {}, 'Mute' },
        inside      => sub { [ bless {}, 'Bar' ] },
        true        => sub { $_[0] },
        infinity    => sub { [ 9**9**9, -9**9**9, 'inf "nan"' ] },
        not_unicode => sub { [ chr hex shift ] },
        glob        => sub { \*STDOUT },
        cycle       => sub { my @cycle; push @cycle, \@cycle; \@cycle },
        words       => sub { [ 'inf', 'nan and "infinity"', '\\' ] },

        # Logs that JSON does not have, timers that run on.
        log_odd => sub {
            my ( $deep, @cycle ) = ('deepest');
            $deep = [$deep] for 1 .. 200;
            push @cycle, \@cycle;
            logger->info( 'odd', sub { }, bless( { of => 1 }, 'Foo' ), 9**9**9, chr 0xd800, $deep, \@cycle );
            logger->data->{handle} = \*STDOUT;
            logger->warn( sub { ( 'late', 1 ) } );
            return 1;
        },
        log_runs_on => sub { $held = logger->timer('runs on'); 1 },

        # The process.
        prints => sub { print 'to standard output'; print STDERR "to standard error\n"; my $line = <STDIN>; $line },
        alarms => sub { local $SIG{ALRM} = sub { die "too late\n" }; alarm 1; select undef, undef, undef, 60; 0 },
        forks => sub { my $child = fork // die "cannot fork: $!"; waitpid $child, 0 if $child; $child ? $? >> 8 : 'child' },
        fork_dies => sub { my $child = fork // die "cannot fork: $!"; waitpid $child, 0 if $child; $child ? $? >> 8 : die 'child' },
        descriptors => sub { my $listed = `ls -l /proc/self/fd`; scalar( () = $listed =~ /socket:/g ) . ( $ENV{TASKFORK_FD} // '' ) },
        title   => sub { $0 },
    },
);

$server->run;
