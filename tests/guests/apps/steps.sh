# Each line of input starts one step: a pipeline, jobs in the background that are waited for, a
# command substitution, a here-document. Its result is one line.
state=start
while read -r line; do
    (sleep 0.03; exit $((line + 2))) &
    first=$!
    (sleep 0.01; echo "$line of the second" >"$HOME/second.$$") &
    second=$!
    sum=$(seq 1 20000 | sed "s/\$/ $line/" | gzip -1 | gunzip | sort -k1,1nr | head -n 15000 | sha256sum)
    wait $first
    code=$?
    wait $second || code=failed
    state=$(printf '%s %s %s\n' "$state" "$sum" "$code" | sha256sum | cut -c1-16)
    other=$(cat - "$HOME/second.$$" <<END
$line in here
END
    )
    echo "$line $code $state $other" | tr '\n' ' '
    echo
done
rm -f "$HOME/second.$$"
echo "end $state"
