package common::sense;

# Replaces common::sense where it is not installed. It sets how strict Perl is with the program.
use strict;
use warnings;

sub import {
    require utf8;
    require feature;
    utf8->import;
    strict->import(qw(vars subs));
    feature->import(qw(say state));
}

sub unimport { }

1;
