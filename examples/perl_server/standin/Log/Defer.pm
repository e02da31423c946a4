package Log::Defer;

# Replaces Log::Defer where it is not installed. It collects lines, timers and data of one request, and
# passes them to a function as one message when the last reference to the object is dropped.
use strict;
use warnings;

use Carp        qw(croak);
use Time::HiRes ();

our $VERSION = '0.312';

my %levels = ( error => 10, warn => 20, info => 30, debug => 40 );

for my $name ( keys %levels ) {
    no strict 'refs';
    *{$name} = sub { my $self = shift; $self->add_log( $levels{$name}, @_ ) };
}

sub new {
    my ( $class, $first, $options ) = @_;
    $options = ref $first eq 'HASH' ? {%$first} : { %{ $options || {} }, cb => $first };
    croak 'Log::Defer needs a callback' unless ref $options->{cb} eq 'CODE';
    return bless { %$options, msg => { start => microseconds( Time::HiRes::time() ) } }, $class;
}

sub add_log {
    my ( $self, $level, @items ) = @_;
    return if exists $self->{verbosity} && $level > $self->{verbosity};
    my $time = since( $self->{msg} );
    @items = $items[0]->() if ref $items[0] eq 'CODE';
    push @{ $self->{msg}{logs} }, [ $time, $level, @items ];
}

# It runs until the last reference to the returned object is dropped.
sub timer {
    my ( $self, $name ) = @_;
    my $timer = [ $name, since( $self->{msg} ) ];
    push @{ $self->{msg}{timers} }, $timer;
    return bless { timer => $timer, message => $self->{msg} }, 'Log::Defer::Timer';
}

sub data { $_[0]{msg}{data} ||= {} }

sub merge {
    my ( $self, $other ) = @_;
    my $message = $self->{msg};
    my $offset  = $other->{start} - $message->{start};
    for ( @{ $other->{logs} || [] } ) {
        my ( $time, @rest ) = @$_;
        push @{ $message->{logs} }, [ $time + $offset, @rest ];
    }
    @{ $message->{logs} } = sort { $a->[0] <=> $b->[0] } @{ $message->{logs} } if $message->{logs};
    for ( @{ $other->{timers} || [] } ) {
        my ( $name, @times ) = @$_;
        push @{ $message->{timers} }, [ $name, map { $_ + $offset } @times ];
    }
    $message->{data} = { %{ $message->{data} || {} }, %{ $other->{data} } } if $other->{data};
}

sub DESTROY {
    my ($self) = @_;
    my $message = $self->{msg};
    $message->{end} = since($message);
    @$_ == 2 and push @$_, $message->{end} for @{ $message->{timers} || [] };
    $self->{cb}->($message);
}

sub since { microseconds( Time::HiRes::time() - $_[0]{start} ) }

sub microseconds { my ($time) = @_; return 0 + sprintf '%.6f', $time < 0 ? 0 : $time }

package Log::Defer::Timer;

sub DESTROY {
    my ($self) = @_;
    push @{ $self->{timer} }, Log::Defer::since( $self->{message} ) if @{ $self->{timer} } == 2;
}

1;
