package AnyEvent;

# Replaces AnyEvent where it is not installed, as far as a server program of AnyEvent::Task needs it:
# condition variables, whose `recv` serves, and watchers. A worker runs one call after the other, so
# watchers never fire there, with the real AnyEvent as well.
use strict;
use warnings;

our $VERSION = '7';
our $MODEL;

my %watchers = map { $_ => 1 } qw(timer io signal child idle);

sub condvar { my ( undef, %option ) = @_; return AE::cv( $option{cb} ) }
sub now        { time }
sub now_update { }
sub time       { CORE::time() }
sub detect     { 'AnyEvent::Impl::Perl' }
sub log        { }
sub postpone(&) { }

for my $kind ( keys %watchers ) {
    no strict 'refs';
    *{$kind} = sub { bless {}, 'AnyEvent::Watcher' };
    *{"AE::$kind"} = sub { bless {}, 'AnyEvent::Watcher' };
}

package AE;

$INC{'AE.pm'} = __FILE__;
sub cv(;&) { my ($callback) = @_; return bless { callback => $callback, open => 0 }, 'AnyEvent::CondVar' }
sub now        { CORE::time() }
sub now_update { }
sub time       { CORE::time() }
sub log        { }
sub postpone(&) { }

package AnyEvent::CondVar;

sub send {
    my ( $self, @values ) = @_;
    return if $self->{sent};
    $self->{sent} = \@values;
    $self->{callback}->($self) if $self->{callback};
}

sub croak {
    my ( $self, $error ) = @_;
    $self->{error} = $error;
    $self->send;
}

sub recv {
    my ($self) = @_;
    AnyEvent::Task::Server->run unless $self->{sent};
    die $self->{error} if defined $self->{error};
    return wantarray ? @{ $self->{sent} } : $self->{sent}[0];
}

sub cb {
    my ( $self, $callback ) = @_;
    return $self->{callback} if @_ < 2;
    $self->{callback} = $callback;
    $callback->($self) if $callback && $self->{sent};
}

sub begin { my ( $self, $callback ) = @_; $self->{open}++; $self->{last} = $callback if $callback }

sub end {
    my ($self) = @_;
    return if --$self->{open};
    $self->{last} ? $self->{last}->($self) : $self->send;
}

sub ready { defined $_[0]{sent} }
*broadcast = \&send;
*wait      = \&recv;

1;
