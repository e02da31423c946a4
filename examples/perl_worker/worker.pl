#!/usr/bin/env perl
# A worker in plain Perl, with modules that every Perl has:
#     taskfork serve --protocol json --listen unix:/tmp/words.sock -- perl examples/perl_worker/worker.pl
#     taskfork call unix:/tmp/words.sock count 'the quick fox and the lazy dog'
use strict;
use warnings;
use JSON::PP;
use POSIX ();
use Time::HiRes qw(time);

my ( $start, %kept, @lines );
my $worker = $$;
sub note { my ( $level, @items ) = @_; push @lines, [ time - $start, $level, @items ] }

my %interface = (
    echo  => sub { $_[0] },
    add   => sub { $_[0] + $_[1] },
    pid   => sub { $$ },
    exit  => sub { exit $_[0] },
    boom  => sub { die "$_[0]\n" },
    count => sub {
        my %count;
        $count{ lc $_ }++ for $_[0] =~ /\w+/g;
        note( 30, 'counted', scalar keys %count );
        return \%count;
    },
    keep  => sub { $kept{ $_[0] } = $_[1]; return },
    known => sub { [ sort keys %kept ] },
    fork  => sub { fork // die "cannot fork: $!\n"; $$ },    # Returns in both processes.
);

open my $connection, '+<&=', $ENV{TASKFORK_FD}
  or die "start it by: taskfork serve --protocol json --listen unix:PATH -- perl $0\n";
my $json = JSON::PP->new->utf8->allow_nonref;

sub answer {
    my ( $kind, undef, $method, @arguments ) = @{ $json->decode( $_[0] ) };
    if ( $kind eq 'dn' ) { %kept = (); return }    # The checkout is done.
    ( $start, @lines ) = (time);
    my $value = eval {
        my $code = $interface{ $method // '' } or die "no method $method\n";
        $code->(@arguments);
    };
    # A child that the method has forked, and that returns from it, must not answer on the same connection.
    POSIX::_exit(70) if $$ != $worker;
    my $meta = @lines ? { ld => { start => $start, logs => \@lines } } : {};
    my $answer = $json->encode( $@ ? [ 'er', $meta, $@ ] : [ 'ok', $meta, $value ] );
    while ( length $answer ) {
        my $wrote = syswrite( $connection, $answer ) // die "cannot answer: $!\n";
        substr( $answer, 0, $wrote, '' );
    }
}

my ( $text, $at, $depth, $quoted ) = ( '', 0, 0, 0 );
while ( sysread $connection, $text, 65536, length $text ) {
    # A message ends where its outermost bracket closes. A read can end anywhere in it.
    pos($text) = $at;
    while ( $text =~ /\G(?:[^][{}"\\]++|\\.|(")|([[{])|([]}]))/gcs ) {
        $quoted = !$quoted if $1;
        next               if $quoted;
        $depth += $2 ? 1 : $3 ? -1 : 0;
        answer( substr $text, 0, pos($text), '' ), pos($text) = 0 if $3 && !$depth;
    }
    $at = pos($text) // 0;
}
