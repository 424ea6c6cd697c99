# Each line of input starts one step: sorting, hashes, regular expressions, a file written and
# read, an alarm that is handled. Its result is one line.
use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
use Time::HiRes qw(ualarm);

$| = 1;
my $alarms = 0;
$SIG{ALRM} = sub { $alarms++ };
my ($state, $file) = ('', "$ENV{HOME}/perl.$$");
open(my $log, '+>>', $file) or die "$file: $!";
while (my $line = <STDIN>) {
    chomp $line;
    my ($want, %seen) = ($alarms + 1);
    ualarm(20_000);
    for my $i (1 .. 200_000) {
        $seen{ ($i * 7919 + $line) % 10_007 } .= chr(97 + $i % 26);
    }
    $state = sha256_hex($state . join(',', map { "$_=$seen{$_}" } sort keys %seen));
    print $log "$state\n";
    select(undef, undef, undef, 0.01) while $alarms < $want;
    seek($log, 0, 0);
    my $lines = () = <$log>;
    (my $vowels = $state) =~ tr/a-e//cd;
    print "$line $state $lines $vowels\n";
}
close($log);
unlink($file);
print "end $state $alarms\n";
