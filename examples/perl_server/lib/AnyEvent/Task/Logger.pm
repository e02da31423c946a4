package AnyEvent::Task::Logger;

# Replaces AnyEvent::Task's module of this name. `logger` returns a Log::Defer object for the running
# call, made on demand. The answer carries its log.
use strict;
use warnings;

use Exporter qw(import);
use Log::Defer;

our @EXPORT = qw(logger);
our $log_defer_object;

sub logger {
    return $log_defer_object ||= Log::Defer->new( sub { } );
}

1;
