package AnyEvent::Task::Server::Worker;

# A worker reads calls from its connection, runs them one at a time, and answers. The
# protocol is that of docs/PROTOCOL.md, "The other protocol: JSON".
use strict;
use warnings;

use IO::Handle   ();
use JSON::PP     ();
use POSIX        ();
use Scalar::Util qw(blessed);
use Time::HiRes  ();

use AnyEvent::Task::Logger;

# The first two are compiled C and faster; JSON::PP comes with Perl.
my ($json_class) = grep { eval "require $_" } qw(JSON::XS Cpanel::JSON::XS JSON::PP);
my $json = $json_class->new->utf8->allow_nonref->max_depth(512);

# taskfork drops values that nest deeper than 64 levels in a log.
my $deepest_log = 60;
my $log_json    = $json_class->new->utf8->allow_nonref->max_depth($deepest_log);

my ( $connection, $pid, $is_set_up );

# Serves a connection until it ends. Does not return.
sub serve {
    ( my $server, $connection ) = @_;
    $pid = $$;
    binmode $connection;
    $connection->blocking(1);

    # The program has set handlers for a server. Only taskfork ends workers.
    $SIG{$_} = 'IGNORE' for qw(TERM INT HUP QUIT);
    eval {
        while ( defined( my $message = next_message() ) ) {
            limited( $server, sub { answer( $server, $message ) } );
        }
        1;
    } or leave( 1, $@ );
    leave(0);
}

sub answer {
    my ( $server,  $message )           = @_;
    my ( $command, undef, @arguments ) = @{ $json->decode($message) };
    if ( $command eq 'do' ) {
        reply( call( $server, @arguments ) );
        STDOUT->flush;
    }
    elsif ( $command eq 'dn' ) {
        # With the inner block, `last` in the program's code does not leave the worker's loop.
        my $is_done = eval { { $server->{checkout_done}->() } 1 };
        leave(70) if $$ != $pid;
        leave( 1, 'checkout_done: ' . text_of($@) ) unless $is_done;
    }
    else { die "unknown command: $command\n" }
}

# Runs a call and returns the answer.
sub call {
    my ( $server, @arguments ) = @_;
    local $AnyEvent::Task::Logger::log_defer_object;
    local $_;
    my ( $value, $has_returned );
    my $is_done = eval {
        # `last` leaves this block, as above.
        {
            if ( !$is_set_up ) {
                $server->{setup}->();
                $is_set_up = 1;
            }
            $value        = scalar $server->{interface}->(@arguments);
            $has_returned = 1;
        }
        1;
    };
    my $error = $@;

    # A child that the function has forked, and that returns from it, must not answer on the same connection.
    leave(70) if $$ != $pid;

    # What fails from here on is dealt with here, whatever the program does about errors.
    local $SIG{__DIE__};
    my $meta = meta();
    if ( !$is_done ) {
        my $text = text_of($error);
        $text = "setup exception: $text" unless $is_set_up;
        return error( $meta, $text );
    }
    return error( $meta, 'it was left by `next`, `last` or `redo` instead of returning' ) unless $has_returned;
    return error( $meta, 'interface returned object: ' . ref($value) . '=(' . text_of($value) . ')' )
      if blessed $value && !JSON::PP::is_bool($value);
    my $encoded = eval { encode( $json, $value ) };
    return error( $meta, "error JSON encoding interface output: $@" ) unless defined $encoded;
    return qq(["ok",$meta,$encoded]);
}

sub error {
    my ( $meta, $text ) = @_;
    return qq(["er",$meta,) . $json->encode( unicode($text) ) . ']';
}

# The part of an answer with the log of the call.
sub meta {
    my $log = $AnyEvent::Task::Logger::log_defer_object or return '{}';
    my %message = %{ $log->{msg} };
    if ( $message{timers} ) {
        # A running timer has no end yet.
        my $now = Time::HiRes::time() - $message{start};
        $message{timers} = [ map { [ @$_ == 2 ? ( @$_, $now ) : @$_ ] } @{ $message{timers} } ];
    }
    my $encoded = eval { encode( $log_json, \%message ) } // $json->encode( plain( \%message, $deepest_log ) );
    return qq({"ld":$encoded});
}

# A value as JSON. Dies if JSON or UTF-8 cannot represent it.
sub encode {
    my ( $encoder, $value ) = @_;
    my $text = $encoder->encode($value);
    if ( $text =~ /inf|nan/i ) {
        # Without escapes, a string ends at the next quotation mark.
        ( my $rest = $text ) =~ s/\\.//gs;
        $rest =~ s/"[^"]*"//g;
        die "infinity and NaN are no numbers in JSON\n" if $rest =~ /inf|nan/i;
    }
    # These bytes encode surrogates and characters above U+10FFFF.
    die "a string has a character that Unicode does not have\n"
      if $text =~ /\xed[\xa0-\xbf]|\xf4[\x90-\xbf]|[\xf5-\xff]/;
    return $text;
}

# A copy of a value in which text replaces everything that JSON cannot represent.
sub plain {
    my ( $value, $depth ) = @_;
    my $kind = blessed $value ? '' : ref $value;
    return [ map { plain( $_, $depth - 1 ) } @$value ] if $kind eq 'ARRAY' && $depth;
    return { map { unicode($_) => plain( $value->{$_}, $depth - 1 ) } keys %$value }
      if $kind eq 'HASH' && $depth;
    return $value if ( !ref $value || JSON::PP::is_bool($value) ) && eval { encode( $json, $value ); 1 };
    return unicode( ref $value && !blessed $value ? "$value" : text_of($value) );
}

# A thrown value as text.
sub text_of {
    my ($error) = @_;
    my $text =
       !ref $error     ? "$error"
      : blessed $error ? eval { "$error" }
      :                  eval { $json_class->new->canonical->encode($error) } // "$error";
    return $text // 'an object of ' . ref($error) . ', which has no text';
}

sub unicode {
    my ($text) = @_;
    $text =~ s/[^\x{0}-\x{d7ff}\x{e000}-\x{10ffff}]/\x{fffd}/g;
    return $text;
}

# Runs code within the program's hung_worker_timeout.
sub limited {
    my ( $server, $code ) = @_;
    my $limit = $server->{hung_worker_timeout};
    return $code->() unless $limit;
    local $SIG{ALRM} = sub { leave( 1, "killing hung worker $$: hung_worker_timeout is $limit seconds" ) };
    Time::HiRes::alarm($limit);
    $code->();
    Time::HiRes::alarm(0);
}

# Ends the process without END blocks and destructors, which belong to the program's server.
sub leave {
    my ( $status, $reason ) = @_;
    if ( defined $reason ) {
        $reason =~ s/\n?\z/\n/;
        print STDERR $reason;
    }
    STDOUT->flush;
    STDERR->flush;
    POSIX::_exit($status);
}

my ( $received, $at, $depth, $is_quoted ) = ( '', 0, 0, 0 );

# The next message; undef at the end of the connection. A message ends where its outermost bracket
# closes. A read can end anywhere in it.
sub next_message {
    while (1) {
        pos($received) = $at;
        while ( $received =~ /\G(?:[^][{}"\\]++|\\.|(")|([[{])|([]}]))/gcs ) {
            $is_quoted = !$is_quoted if $1;
            next                     if $is_quoted;
            $depth += $2 ? 1 : $3 ? -1 : 0;
            next if !$3 || $depth;
            $at = 0;
            return substr $received, 0, pos $received, '';
        }
        $at = pos $received;
        my $count = sysread $connection, $received, 1 << 20, length $received;
        if ( !defined $count ) {
            next if $!{EINTR};
            die "cannot read from the connection: $!\n";
        }
        next if $count;
        die "the connection has ended in the middle of a message\n" if $depth;
        return;
    }
}

sub reply {
    my ($message) = @_;
    local $SIG{PIPE} = 'IGNORE';
    while ( length $message ) {
        my $count = syswrite $connection, $message;
        if ( !defined $count ) {
            next if $!{EINTR};
            die "cannot answer: $!\n";
        }
        substr $message, 0, $count, '';
    }
}

1;
