package AnyEvent::Task::Server;

# Replaces AnyEvent::Task's module of this name. An unchanged server program then serves as a worker
# of taskfork:
#     taskfork serve --protocol json --listen unix:/tmp/ledger.sock -- \
#         perl -Iexamples/perl_server/lib -MAnyEvent::Task::Server examples/perl_server/ledger.pl
# taskfork listens, and starts the whole program for each worker. docs/guide/perl.md says what differs.
use strict;
use warnings;

use Cwd            ();
use Fcntl          qw(F_GETFD F_SETFD FD_CLOEXEC);
use File::Basename qw(dirname);

our $VERSION = '0.805';

my ( $connection, $unconnected, $command );

BEGIN {
    # At the end of the list, so that Perl prefers installed modules to these substitutes.
    push @INC, Cwd::abs_path( dirname(__FILE__) . '/../../../standin' );

    # Read this before the program changes its title or its arguments.
    if ( open my $line, '<', '/proc/self/cmdline' ) { local $/; $command = <$line> }

    # Hide the connection before the program starts other programs.
    my $descriptor = delete $ENV{TASKFORK_FD};
    if ( !defined $descriptor ) { $unconnected = 'taskfork has not started it' }
    elsif ( $descriptor !~ /\A[0-9]+\z/ || !open $connection, '+<&=', $descriptor ) {
        $unconnected = "TASKFORK_FD is $descriptor, which is no open descriptor";
    }
    else { fcntl $connection, F_SETFD, fcntl( $connection, F_GETFD, 0 ) | FD_CLOEXEC }
}

use AnyEvent;
use AnyEvent::Task::Server::Worker;

# The process that taskfork has started, and the program's server that it serves.
my $process = $$;
my ( $serving, $main_loop );

sub new {
    my ( $class, %option ) = @_;
    my $interface = $option{interface};
    die "unspecified listen path\n" unless $option{listen};
    die "unspecified interface\n"   unless exists $option{interface};
    my $kind = ref $interface;
    die "interface must be a sub or a hash\n" unless $kind eq 'CODE' || $kind eq 'HASH';

    my $self = bless {
        name          => $option{name},
        setup         => $option{setup}         || sub { },
        checkout_done => $option{checkout_done} || sub { },
        interface     => $kind eq 'CODE' ? $interface : sub { dispatch( $interface, @_ ) },
        # taskfork has a limit of its own, even if the program sets none.
        hung_worker_timeout => $option{hung_worker_timeout},
    }, $class;

    die instructions(%option) if $unconnected;
    if ( is_wanted(%option) ) {
        die "the program makes several servers, and a worker serves one: "
          . "set TASKFORK_SERVER to the name of the server, or to the path or port at which it listens\n"
          if $serving;
        $serving = $self;
        $0 = "AET-Worker:$option{name}" if defined $option{name};
    }

    # This serves in every main loop, and even if the program has not kept the object.
    $main_loop ||= AE::timer( 0, 0, \&run );
    return $self;
}

# Whether a worker serves the server with these options. A program may make several.
sub is_wanted {
    my (%option) = @_;
    my $wanted = $ENV{TASKFORK_SERVER} // return 1;
    return scalar grep { defined && $_ eq $wanted } $option{name}, $option{listen}[1];
}

# Serves the wanted server, and does not return. It does not throw, because a main loop may catch exceptions.
sub run {
    my $wanted = $ENV{TASKFORK_SERVER};
    my $reason =
       $$ != $process    ? 'the program has forked before it serves: under taskfork it must stay in the foreground'
      : $serving         ? undef
      : defined $wanted  ? "the program makes no server $wanted, which TASKFORK_SERVER names"
      :                    'the program makes no server';
    AnyEvent::Task::Server::Worker::leave( 1, $reason ) if defined $reason;
    AnyEvent::Task::Server::Worker::serve( $serving, $connection );
}

# Serves in this process, which taskfork has forked, so the program does not go on to its client.
sub fork_task_server {
    my $self = __PACKAGE__->new(@_);
    $self->run if $serving && $serving == $self;
    return wantarray ? ( undef, undef ) : undef;
}

sub dispatch {
    my ( $methods, $method, @arguments ) = @_;
    my $code = defined $method && !ref $method ? $methods->{$method} : undef;
    return $code->(@arguments) if defined $code;
    my $known = join ', ', sort keys %$methods;
    die "call a method: there is $known\n" if !defined $method || ref $method;
    die "unknown method `$method`: there is $known\n";
}

# The command that starts the program, quoted for a shell.
sub instructions {
    my (%option) = @_;
    my ( $host, $service ) = @{ $option{listen} };
    $host = '0.0.0.0' if !defined $host || $host eq '';
    my @words = ( 'taskfork', 'serve', '--protocol', 'json', '--listen' );
    if ( $host eq 'unix/' ) { push @words, "unix:$service" }
    else {
        # On TCP a server speaks JSON only with this option.
        push @words, "tcp:$host:$service", '--protocols', 'native,json';
        push @words, '--allow-unauthenticated-network' unless $host =~ /\A(?:127\.|::1\z|localhost\z)/;
    }
    push @words, '--name', $option{name} if defined $option{name};
    push @words, '--hung-worker-timeout', $option{hung_worker_timeout} || 0
      if exists $option{hung_worker_timeout};
    push @words, '--', split /\0/, $command;
    for (@words) {
        s/'/'\\''/g;
        $_ = "'$_'" unless m{\A[-\w./:=,+@%]+\z};
    }
    return "$0 is to run as a worker, but $unconnected. Start it by:\n    @words\n";
}

1;
