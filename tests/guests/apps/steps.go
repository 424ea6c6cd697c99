// Each line of input starts one step of work in eight goroutines, with timers and channels
// between them; its result is one line.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

func chain(seed uint64, rounds int) uint64 {
	x := seed
	for i := 0; i < rounds; i++ {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return x
}

func step(n uint64) uint64 {
	results := make([]uint64, 8)
	var group sync.WaitGroup
	for i := range results {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			<-time.After(time.Duration(i) * time.Millisecond)
			results[i] = chain(n*1000+uint64(i)+1, 10_000_000)
		}(i)
	}
	group.Wait()
	total := uint64(0)
	for _, r := range results {
		total = total*31 + r
	}
	return total
}

func main() {
	ticks := 0
	stop := make(chan bool)
	done := make(chan bool)
	go func() {
		ticker := time.NewTicker(5 * time.Millisecond)
		for {
			select {
			case <-ticker.C:
				ticks++
			case <-stop:
				done <- true
				return
			}
		}
	}()
	total := uint64(0)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		n, err := strconv.ParseUint(lines.Text(), 10, 64)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		total = total*31 + step(n)
		fmt.Printf("%d %x\n", n, total)
	}
	stop <- true
	<-done
	fmt.Printf("end %x %v\n", total, ticks > 10)
}
